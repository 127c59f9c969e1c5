use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// Bytes of an element.
const ELEMENT: u64 = 2;

/// Matrices that fill their tensor: whole, transposed, and those of stacks in each order.
fn views() -> impl Strategy<Value = (Vec<MatrixView>, u64)> {
    let sizes = (1u64..4, 1u64..3, 1u64..20, 1u64..20);
    (sizes, any::<[bool; 2]>()).prop_map(|((experts, parts, rows, cols), [is_transposed, is_interleaved])| {
        let layout = StackLayout { parts, rows, cols, is_transposed, is_interleaved };
        let of_expert = |expert| (0..parts).map(move |part| layout.view(expert, part));
        ((0..experts).flat_map(of_expert).collect(), experts * parts * rows * cols)
    })
}

fn tensor(elements: u64) -> Vec<u8> {
    (0..elements as u16).flat_map(u16::to_le_bytes).collect()
}

/// The parts of a matrix of at most `step` rows.
fn tiles(view: MatrixView, step: u64) -> impl Iterator<Item = MatrixRows> {
    (0..view.rows).step_by(step as usize).map(move |row| view.rows(row..row + step))
}

fn gathered(rows: &MatrixRows, tensor: &[u8]) -> Vec<u8> {
    let mut out = vec![0; rows.bytes(ELEMENT) as usize];
    let read = |at: u64, out: &mut [u8]| {
        out.copy_from_slice(&tensor[at as usize..][..out.len()]);
        Ok::<_, Infallible>(())
    };
    rows.gather(ELEMENT, &mut out, &mut vec![7; 3], read).unwrap();
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_is_gathered_and_scattered_lies_where_it_lay((views, elements) in views(), step in 1u64..25) {
        let tensor = tensor(elements);
        let mut copy = vec![0; tensor.len()];
        let mut written = vec![0; tensor.len()];
        for rows in views.iter().flat_map(|view| tiles(*view, step)) {
            let bytes = gathered(&rows, &tensor);
            for (n, value) in (0..).zip(bytes.as_chunks().0) {
                prop_assert_eq!(u64::from(u16::from_le_bytes(*value)), rows.element_at(n));
            }
            let write = |at: u64, bytes: &[u8]| {
                let at = at as usize..at as usize + bytes.len();
                copy[at.clone()].copy_from_slice(bytes);
                written[at].iter_mut().for_each(|times| *times += 1);
                Ok::<_, Infallible>(())
            };
            rows.scatter(ELEMENT, &bytes, write).unwrap();
        }
        prop_assert_eq!(copy, tensor);
        // The matrices of a stack, and the tiles of a matrix, share no byte and leave none out.
        prop_assert!(written.iter().all(|times| *times == 1));
    }

    #[test]
    fn ranges_lie_within_the_tensor((views, elements) in views(), step in 1u64..25) {
        let bytes = elements * ELEMENT;
        for view in &views {
            prop_assert!(view.end(ELEMENT).unwrap() <= bytes);
            if let Some(range) = view.byte_range(8 * ELEMENT) {
                prop_assert_eq!(range.end - range.start, view.rows * view.cols * ELEMENT);
                prop_assert_eq!(range.end, view.end(ELEMENT).unwrap());
            }
            for rows in tiles(*view, step) {
                let read = |at: u64, out: &mut [u8]| {
                    if at + out.len() as u64 <= bytes { Ok(()) } else { Err(at) }
                };
                let mut out = vec![0; rows.bytes(ELEMENT) as usize];
                prop_assert_eq!(rows.gather(ELEMENT, &mut out, &mut Vec::new(), read), Ok(()));
            }
        }
        prop_assert_eq!(views.iter().map(|view| view.end(ELEMENT).unwrap()).max(), Some(bytes));
    }
}

#[test]
fn empty_rows_are_neither_read_nor_written() {
    for (rows, cols) in [(0, 3), (3, 0), (0, 0)] {
        for is_transposed in [false, true] {
            let view = StackLayout { parts: 1, rows, cols, is_transposed, is_interleaved: false }.view(0, 0);
            let rows = view.rows(0..5);
            assert_eq!(rows.bytes(ELEMENT), 0);
            assert_eq!(rows.gather(ELEMENT, &mut [], &mut Vec::new(), |_, _| Err(())), Ok(()));
            assert_eq!(rows.scatter(ELEMENT, &[], |_, _| Err(())), Ok(()));
        }
    }
}

#[test]
fn errors_stop_at_once() {
    let view =
        StackLayout { parts: 1, rows: 2, cols: 3, is_transposed: true, is_interleaved: false }.view(0, 0);
    let rows = view.rows(0..1);
    let mut calls = 0;
    let failed = rows.scatter(ELEMENT, &[0; 6], |at, _| {
        calls += 1;
        Err(at)
    });
    assert_eq!((failed, calls), (Err(0), 1));
    assert_eq!(rows.gather(ELEMENT, &mut [0; 6], &mut Vec::new(), |at, _| Err(at)), Err(0));
}

#[test]
fn ends_of_views_do_not_overflow() {
    let view = MatrixView { first: 0, rows: u64::MAX, cols: 2, row_stride: 3, column_stride: 1 };
    assert_eq!(view.end(2), None);
    assert_eq!(MatrixView { rows: 0, ..view }.end(2), Some(0));
    assert_eq!(MatrixView { rows: 2, ..view }.end(2), Some(10));
    assert_eq!(MatrixView { rows: 2, first: u64::MAX, ..view }.end(2), None);
}
