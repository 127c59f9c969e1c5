//! CRC-64/NVME of bytes that come in any order, as tiles are read or written. No second read is needed.
//!
//! A CRC is linear: the CRC of A followed by B is the CRC of A moved past the length of B, exclusive-or the CRC of B.
//! So each part is moved past the bytes that follow it, and the parts are added up in any order. Object stores check
//! uploads with this CRC (`x-amz-checksum-crc64nvme`). It takes a tenth of the time of any cryptographic hash.

use std::sync::atomic::{AtomicU64, Ordering};

/// The polynomial of CRC-64/NVME without its leading term, least significant bit first (NVM Express Base Specification,
/// 64-bit CRC).
const POLYNOMIAL: u64 = 0x9A6C_9329_AC4B_C9B5;

/// x^0. Bits represent powers in falling order.
const ONE: u64 = 1 << 63;

/// x^(8·2^k) modulo the polynomial: moves a CRC past 2^k bytes.
const POWERS: [u64; 64] = {
    let mut powers = [ONE >> 8; 64];
    let mut k = 1;
    while k < 64 {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// The product of two polynomials over GF(2), modulo the polynomial of the CRC.
const fn multiply(a: u64, mut b: u64) -> u64 {
    let (mut product, mut bit) = (0, ONE);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 0 { b >> 1 } else { b >> 1 ^ POLYNOMIAL };
        bit >>= 1;
    }
    product
}

/// The CRC of some bytes.
#[must_use]
pub fn of(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// The contribution of the CRC of some bytes to the CRC of a whole in which `following` bytes come after them.
#[must_use]
pub fn moved(mut crc: u64, mut following: u64) -> u64 {
    let mut k = 0;
    while following != 0 && crc != 0 {
        if following & 1 == 1 {
            crc = multiply(POWERS[k], crc);
        }
        following >>= 1;
        k += 1;
    }
    crc
}

/// The CRC of bytes followed by others of known CRC and length.
#[must_use]
pub fn joined(first: u64, second: u64, second_len: u64) -> u64 {
    moved(first, second_len) ^ second
}

/// A checksum as reports write it.
#[must_use]
pub fn text(crc: u64) -> String {
    format!("{crc:016x}")
}

/// The checksum of a whole of known length, gathered from parts in any order and from any thread.
#[derive(Debug)]
pub struct Checksum {
    len: u64,
    crc: AtomicU64,
    seen: AtomicU64,
}

impl Checksum {
    /// For `len` bytes, of which none was seen.
    #[must_use]
    pub const fn new(len: u64) -> Self {
        Self { len, crc: AtomicU64::new(0), seen: AtomicU64::new(0) }
    }

    /// Adds the bytes from `offset` on. Parts must not overlap.
    pub fn add(&self, offset: u64, bytes: &[u8]) {
        let count = bytes.len() as u64;
        let following = self.len.saturating_sub(offset + count);
        self.crc.fetch_xor(moved(of(bytes), following), Ordering::Relaxed);
        self.seen.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes the checksum of the whole as known.
    pub fn set(&self, crc: u64) {
        self.crc.store(crc, Ordering::Relaxed);
        self.seen.store(self.len, Ordering::Relaxed);
    }

    /// The checksum. None if bytes are missing.
    #[must_use]
    pub fn value(&self) -> Option<u64> {
        (self.seen.load(Ordering::Relaxed) == self.len).then(|| self.crc.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(text(of(b"123456789")), "ae8b14860a799888");
        assert_eq!(of(b""), 0);
    }

    #[test]
    fn missing_bytes_have_no_checksum() {
        let checksum = Checksum::new(5);
        checksum.add(1, b"ell");
        assert_eq!(checksum.value(), None);
        checksum.add(0, b"h");
        checksum.add(4, b"o");
        assert_eq!(checksum.value(), Some(of(b"hello")));
        assert_eq!(Checksum::new(0).value(), Some(0));
    }

    proptest! {
        #[test]
        fn any_cuts_in_any_order_give_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            cuts in proptest::collection::vec(0_usize..3000, 0..8),
            reverse: bool,
        ) {
            let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            bounds.extend([0, bytes.len()]);
            bounds.sort_unstable();
            let mut parts: Vec<(usize, usize)> = bounds.windows(2).map(|pair| (pair[0], pair[1])).collect();
            if reverse {
                parts.reverse();
            }
            let checksum = Checksum::new(bytes.len() as u64);
            for (start, end) in parts {
                checksum.add(start as u64, &bytes[start..end]);
            }
            prop_assert_eq!(checksum.value(), Some(of(&bytes)));
        }

        #[test]
        fn joining_is_concatenation(a in proptest::collection::vec(any::<u8>(), 0..200), b in proptest::collection::vec(any::<u8>(), 0..200)) {
            let whole: Vec<u8> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(joined(of(&a), of(&b), b.len() as u64), of(&whole));
        }
    }
}
