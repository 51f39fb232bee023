//! What a rule does to a packet's mark.

/// What a write to a packet's mark may do to its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkWrite {
    /// Bits that may be set afterwards where they were not before.
    pub sets: u32,
    /// Bits that may be clear afterwards where they were set before.
    pub clears: u32,
}

impl MarkWrite {
    /// A write of which nothing can be told.
    pub const UNKNOWN: Self = Self {
        sets: u32::MAX,
        clears: u32::MAX,
    };
}

/// A value that is computed from the mark, as the kernel does it: `(mark & mask) ^ xor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkValue {
    mask: u32,
    xor: u32,
}

impl MarkValue {
    /// The mark as it is.
    pub(crate) const SAME: Self = Self {
        mask: u32::MAX,
        xor: 0,
    };

    /// A value whatever the mark is.
    pub(crate) fn constant(value: u32) -> Self {
        Self {
            mask: 0,
            xor: value,
        }
    }

    /// This value after the kernel's `& mask ^ xor`.
    pub(crate) fn bitwise(self, mask: u32, xor: u32) -> Self {
        Self {
            mask: self.mask & mask,
            xor: self.xor & mask ^ xor,
        }
    }

    /// What it does to the bits of the mark that it is written to.
    pub(crate) fn write(self) -> MarkWrite {
        let Self { mask, xor } = self;
        MarkWrite {
            sets: xor,
            clears: mask & xor | !mask & !xor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_cleared_kept_or_turned() {
        let write = |sets, clears| MarkWrite { sets, clears };
        let same = MarkValue::SAME;
        assert_eq!(same.write(), write(0, 0));
        assert_eq!(same.bitwise(!0x4, 0x4).write(), write(0x4, 0));
        assert_eq!(same.bitwise(!0x4, 0).write(), write(0, 0x4));
        assert_eq!(same.bitwise(!0, 0x4).write(), write(0x4, 0x4));
        assert_eq!(MarkValue::constant(0x4).write(), write(0x4, !0x4));
        assert_eq!(
            same.bitwise(!0x4, 0x4).bitwise(0xff, 0).write(),
            write(0x4, !0xff)
        );
    }
}
