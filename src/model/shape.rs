//! Sizes of the axes of a tensor: a vector that takes no memory of its own if there are two axes or fewer, as mostly.

use std::fmt;
use std::ops::Deref;

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// The most axes that a tensor of a file may have: no framework has tensors with more.
pub(crate) const MAX_AXES: usize = 64;

const FEW: usize = 2;

/// Sizes of the axes; empty for a scalar.
#[derive(Clone)]
pub struct Shape(Sizes);

#[derive(Clone)]
enum Sizes {
    Few(u8, [u64; FEW]),
    Many(Box<[u64]>),
}

impl Deref for Shape {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        match &self.0 {
            Sizes::Few(count, sizes) => &sizes[..usize::from(*count).min(FEW)],
            Sizes::Many(sizes) => sizes,
        }
    }
}

impl From<&[u64]> for Shape {
    fn from(sizes: &[u64]) -> Self {
        match *sizes {
            [] => Self(Sizes::Few(0, [0; FEW])),
            [a] => Self(Sizes::Few(1, [a, 0])),
            [a, b] => Self(Sizes::Few(2, [a, b])),
            _ => Self(Sizes::Many(sizes.into())),
        }
    }
}

impl From<Vec<u64>> for Shape {
    fn from(sizes: Vec<u64>) -> Self {
        Self::from(sizes.as_slice())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Shape {}

impl<const N: usize> PartialEq<[u64; N]> for Shape {
    fn eq(&self, other: &[u64; N]) -> bool {
        **self == *other
    }
}

impl PartialEq<Vec<u64>> for Shape {
    fn eq(&self, other: &Vec<u64>) -> bool {
        **self == **other
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&**self)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let (mut sizes, mut count) = ([0; MAX_AXES], 0);
        while let Some(size) = seq.next_element()? {
            *sizes
                .get_mut(count)
                .ok_or_else(|| A::Error::custom(format_args!("a shape of more than {MAX_AXES} axes")))? =
                size;
            count += 1;
        }
        Ok(Shape::from(&sizes[..count]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_axes_is_a_slice() {
        for axes in [&[][..], &[3], &[3, 4], &[3, 4, 5], &[1; 9]] {
            let shape = Shape::from(axes);
            assert_eq!((&*shape, &shape), (axes, &Shape::from(axes.to_vec())));
            let text = serde_json::to_string(&shape).unwrap();
            assert_eq!(text, serde_json::to_string(axes).unwrap());
            assert_eq!(serde_json::from_str::<Shape>(&text).unwrap(), shape);
        }
        let shape = Shape::from(vec![1, 2]);
        assert!(shape == [1, 2] && shape == vec![1, 2] && size_of::<Shape>() <= 24);
        let long = |axes: usize| serde_json::from_str::<Shape>(&format!("[{}1]", "1,".repeat(axes - 1)));
        assert!(long(MAX_AXES).is_ok());
        assert!(long(MAX_AXES + 1).unwrap_err().to_string().contains("more than 64 axes"));
    }
}
