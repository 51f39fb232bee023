//! The only unsafe code: small safe types over libnftnl and libmnl, and a call of the C library.
//!
//! The safe crate `nftnl` has no maps, concatenated keys, `numgen`, `fib` or map lookups, so tables,
//! chains, sets and rules are built here through `nftnl_sys`. Their setters copy what they are
//! given, so nothing here has to outlive a call. Set elements do not pass through libnftnl: it
//! allocates each of them several times over, and there are hundreds of thousands.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use mnl::mnl_sys;
use nftnl::nftnl_sys as sys;

/// Room for the largest message: libnftnl's own bound, 64 KiB and a page.
const SCRATCH_WORDS: usize = (65536 + 4096) / 8;

/// Defines an owned libnftnl object whose attributes are set by number.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $alloc:ident, $free:ident, $set:ident, $build:ident) => {
        $(#[$doc])*
        pub(super) struct $name(NonNull<sys::$raw>);

        impl $name {
            pub(super) fn new() -> Self {
                // SAFETY: it takes no arguments, and returns an object that we own, or null.
                let object = unsafe { sys::$alloc() };
                Self(NonNull::new(object).unwrap_or_else(|| out_of_memory()))
            }

            /// Sets an attribute to a 32-bit number.
            #[allow(dead_code, reason = "not every kind of object has such attributes")]
            pub(super) fn u32(&mut self, attribute: u32, value: u32) {
                self.bytes(attribute, &value.to_ne_bytes());
            }

            /// Sets an attribute to a string.
            pub(super) fn str(&mut self, attribute: u32, value: &str) {
                let mut bytes = value.as_bytes().to_vec();
                bytes.push(0);
                self.bytes(attribute, &bytes);
            }

            /// Sets an attribute to bytes, of the length that the attribute has.
            pub(super) fn bytes(&mut self, attribute: u32, value: &[u8]) {
                let data = value.as_ptr().cast::<c_void>();
                // SAFETY: the object is valid, and libnftnl copies `value.len()` bytes from `data`.
                let _ = unsafe {
                    sys::$set(self.0.as_ptr(), attribute as u16, data, value.len() as u32)
                };
            }
        }

        impl Message for $name {
            unsafe fn build(&self, header: *mut sys::libc::nlmsghdr) {
                // SAFETY: the caller keeps to the contract below, and the object is valid; it is
                // only read.
                unsafe { sys::$build(header, self.0.as_ptr()) }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: we own the object, and nothing uses it after this.
                unsafe { sys::$free(self.0.as_ptr()) }
            }
        }
    };
}

object!(
    /// `struct nftnl_table`; attributes are `NFTNL_TABLE_…`.
    Table, nftnl_table, nftnl_table_alloc, nftnl_table_free, nftnl_table_set_data,
    nftnl_table_nlmsg_build_payload
);
object!(
    /// `struct nftnl_chain`; attributes are `NFTNL_CHAIN_…`.
    Chain, nftnl_chain, nftnl_chain_alloc, nftnl_chain_free, nftnl_chain_set_data,
    nftnl_chain_nlmsg_build_payload
);
object!(
    /// `struct nftnl_set`; attributes are `NFTNL_SET_…`.
    Set, nftnl_set, nftnl_set_alloc, nftnl_set_free, nftnl_set_set_data,
    nftnl_set_nlmsg_build_payload
);
object!(
    /// `struct nftnl_rule`; attributes are `NFTNL_RULE_…`.
    Rule, nftnl_rule, nftnl_rule_alloc, nftnl_rule_free, nftnl_rule_set_data,
    nftnl_rule_nlmsg_build_payload
);

impl Rule {
    /// Appends an expression, which the rule owns from then on.
    pub(super) fn push(&mut self, expression: Expression) {
        let raw = expression.0.as_ptr();
        std::mem::forget(expression);
        // SAFETY: both are valid; the rule takes the expression over and frees it with itself.
        unsafe { sys::nftnl_rule_add_expr(self.0.as_ptr(), raw) }
    }
}

/// `struct nftnl_expr`; attributes are `NFTNL_EXPR_…`.
pub(super) struct Expression(NonNull<sys::nftnl_expr>);

impl Expression {
    /// An expression by its name in the kernel. `None` if this libnftnl does not know it.
    pub(super) fn new(name: &CStr) -> Option<Self> {
        // SAFETY: the name ends in NUL; the result is ours, or null for an unknown name.
        NonNull::new(unsafe { sys::nftnl_expr_alloc(name.as_ptr()) }).map(Self)
    }

    /// Sets an attribute to a 32-bit number.
    pub(super) fn u32(self, attribute: u32, value: u32) -> Self {
        self.bytes(attribute, &value.to_ne_bytes())
    }

    /// Sets an attribute to a string.
    pub(super) fn str(self, attribute: u32, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(attribute, &bytes)
    }

    /// Sets an attribute to bytes.
    pub(super) fn bytes(self, attribute: u32, value: &[u8]) -> Self {
        let data = value.as_ptr().cast::<c_void>();
        // SAFETY: the expression is valid, and libnftnl copies `value.len()` bytes from `data`.
        let _ = unsafe {
            sys::nftnl_expr_set(self.0.as_ptr(), attribute as u16, data, value.len() as u32)
        };
        self
    }
}

impl Drop for Expression {
    fn drop(&mut self) {
        // SAFETY: we own the expression: `Rule::push` forgets those that it gives away.
        unsafe { sys::nftnl_expr_free(self.0.as_ptr()) }
    }
}

/// An object that can be written as the body of a netlink message.
pub(super) trait Message {
    /// Appends attributes to a message.
    ///
    /// # Safety
    ///
    /// `header` must be a complete header, followed by room for the largest message.
    unsafe fn build(&self, header: *mut sys::libc::nlmsghdr);
}

/// Writes messages of libnftnl objects.
pub(super) struct Writer {
    scratch: Box<[u64; SCRATCH_WORDS]>,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            scratch: Box::new([0; SCRATCH_WORDS]),
        }
    }

    /// Appends one message to `out`. The type is an `NFT_MSG_…`, the family an `NFPROTO_…`.
    pub(super) fn message(
        &mut self,
        out: &mut Vec<u8>,
        message_type: u16,
        family: u16,
        flags: u16,
        sequence: u32,
        body: &dyn Message,
    ) {
        let start = self.scratch.as_mut_ptr();
        // SAFETY: the scratch buffer is aligned for a header, and large enough for the largest
        // message that libnftnl builds. The header is at its start and holds the length.
        let length = unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(
                start.cast::<c_char>(),
                message_type,
                family,
                flags,
                sequence,
            );
            body.build(header.cast());
            (*header).nlmsg_len as usize
        };
        assert!(
            length <= SCRATCH_WORDS * 8,
            "libnftnl keeps to its largest message size"
        );
        // SAFETY: `length` bytes from the start have just been written.
        out.extend_from_slice(unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) });
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// A bound netfilter netlink socket that may move between threads.
pub(super) struct Socket(mnl::Socket);

// SAFETY: `struct mnl_socket` is a file descriptor and an address in memory of its own; libmnl
// keeps nothing per thread.
unsafe impl Send for Socket {}

// SAFETY: after it was opened, the memory is only read; what is done to the descriptor goes to the
// kernel, which takes it from any number of threads.
unsafe impl Sync for Socket {}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        mnl::Socket::new(mnl::Bus::Netfilter).map(Self)
    }

    /// Sends bytes as one datagram.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.send(bytes).map(drop)
    }

    /// Lends out the file descriptor.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the socket that is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }

    /// The number that the kernel knows the socket by.
    pub(super) fn port_id(&self) -> u32 {
        self.0.portid()
    }

    /// Sets a `NETLINK_…` option to a number.
    pub(super) fn set_option(&self, option: c_int, number: c_int) -> io::Result<()> {
        let value = std::ptr::from_ref(&number).cast_mut().cast::<c_void>();
        // SAFETY: the socket is open, and the kernel reads an int from `value`.
        let result = unsafe {
            mnl_sys::mnl_socket_setsockopt(
                self.0.as_raw_socket(),
                option,
                value,
                size_of::<c_int>() as sys::libc::socklen_t,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// libnftnl returns null only when there is no memory, for a small allocation at that; do what
/// the standard library does then.
fn out_of_memory() -> ! {
    std::process::abort()
}

/// Has the C library give the system back what is free on the heap. Only the GNU one can keep much.
pub(super) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, may be called at any time by any thread, and moves nothing.
    unsafe {
        sys::libc::malloc_trim(0);
    }
}

/// Has the C library keep one heap for all threads. Only the GNU one has several.
pub(super) fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and may be called at any time by any thread.
    unsafe {
        sys::libc::mallopt(sys::libc::M_ARENA_MAX, 1);
    }
}
