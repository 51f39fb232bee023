//! Bob Jenkins' hash `lookup3`, as the kernel's `jhash()` computes it.
//!
//! Rules of nftables hash clients with it, and the proxy has to come to the same numbers.

/// `JHASH_INITVAL`
const INIT: u32 = 0xdead_beef;

/// Hashes bytes. Whole blocks of twelve bytes are read in host byte order, what is left in little
/// endian, as the kernel does.
pub(crate) fn jhash(bytes: &[u8], seed: u32) -> u32 {
    let start = INIT.wrapping_add(bytes.len() as u32).wrapping_add(seed);
    let mut state = [start; 3];
    let mut rest = bytes;
    while rest.len() > 12
        && let Some((block, after)) = rest.split_first_chunk::<12>()
    {
        add(&mut state, block, u32::from_ne_bytes);
        mix(&mut state);
        rest = after;
    }
    if !rest.is_empty() {
        let mut last = [0; 12];
        last[..rest.len()].copy_from_slice(rest);
        add(&mut state, &last, u32::from_le_bytes);
        finish(&mut state);
    }
    state[2]
}

/// Scales a hash to a number below `n`, which keeps the order of hashes (`reciprocal_scale`).
pub(crate) fn scale(hash: u32, n: u32) -> u32 {
    ((u64::from(hash) * u64::from(n)) >> 32) as u32
}

fn add(state: &mut [u32; 3], block: &[u8; 12], number: fn([u8; 4]) -> u32) {
    for (part, bytes) in state.iter_mut().zip(block.chunks_exact(4)) {
        *part = part.wrapping_add(number([bytes[0], bytes[1], bytes[2], bytes[3]]));
    }
}

/// `__jhash_mix`
fn mix([a, b, c]: &mut [u32; 3]) {
    let step = |x: &mut u32, y: &mut u32, z: u32, rotation| {
        *x = x.wrapping_sub(*y) ^ y.rotate_left(rotation);
        *y = y.wrapping_add(z);
    };
    step(a, c, *b, 4);
    step(b, a, *c, 6);
    step(c, b, *a, 8);
    step(a, c, *b, 16);
    step(b, a, *c, 19);
    step(c, b, *a, 4);
}

/// `__jhash_final`
fn finish([a, b, c]: &mut [u32; 3]) {
    let step = |x: &mut u32, y: u32, rotation| {
        *x = (*x ^ y).wrapping_sub(y.rotate_left(rotation));
    };
    step(c, *b, 14);
    step(a, *c, 11);
    step(b, *a, 25);
    step(c, *b, 16);
    step(a, *c, 4);
    step(b, *a, 14);
    step(c, *b, 24);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the driver at the end of `lookup3.c`, whose `hashlittle` differs from the kernel's in
    /// nothing but that the kernel reads no more than it is given.
    #[test]
    fn published_values() {
        assert_eq!(jhash(b"", 0), 0xdead_beef);
        assert_eq!(jhash(b"", 0xdead_beef), 0xbd5b_7dde);
        let text = b"Four score and seven years ago";
        assert_eq!(jhash(text, 0), 0x1777_0551);
        assert_eq!(jhash(text, 1), 0xcd62_8161);
    }

    #[test]
    fn hashes_are_scaled_to_all_numbers_below() {
        assert_eq!(scale(0, 7), 0);
        assert_eq!(scale(u32::MAX, 7), 6);
        assert_eq!(scale(u32::MAX, 1), 0);
        assert_eq!(scale(1 << 31, 10), 5);
    }
}
