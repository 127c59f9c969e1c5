//! Lists that are written as they are made.

use serde::{Serialize, Serializer};

/// A list of JSON whose elements are made one by one as they are written, by an iterator that can be made again.
pub(crate) struct Each<F>(pub F);

impl<F, I> Serialize for Each<F>
where
    F: Fn() -> I,
    I: Iterator<Item: Serialize>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

#[cfg(test)]
mod tests {
    use crate::show::each::Each;

    #[test]
    fn it_is_written_as_a_list_of_values() {
        for count in [0, 1, 3] {
            let list: Vec<usize> = (0..count).collect();
            let each = serde_json::to_string_pretty(&Each(|| 0..count)).unwrap();
            assert_eq!(each, serde_json::to_string_pretty(&list).unwrap());
        }
    }
}
