//! Which endpoint a client gets where its address decides: by the annotations' documentation, the
//! kernel's `jhash`, and the pseudocode of Maglev's paper. It shares no code with the compiler.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nftproxy_core::model::{Balancing, EndpointAddress, Method, Service};

use crate::common::Twin;

/// The endpoints of these that a client may get: one, if its address decides.
pub(crate) fn chosen<F: Twin>(
    service: &Service,
    endpoints: &BTreeSet<EndpointAddress<F>>,
    client: F::Address,
) -> BTreeSet<EndpointAddress<F>> {
    let weighted = weighted(service, endpoints);
    let Some(balancing) = service.balancing.as_deref() else {
        return endpoints.clone();
    };
    let slots: Vec<_> = match balancing.method {
        Method::Random => return weighted.into_iter().map(|(at, _)| at).collect(),
        Method::SourceHash => repeated(&weighted),
        Method::Maglev => populate(&weighted),
    };
    let hash = jhash(&bytes_of::<F>(client), 0x6e66_7470);
    let slot = u64::from(hash) * slots.len() as u64 / (1 << 32);
    slots.get(slot as usize).copied().into_iter().collect()
}

/// The endpoints that get new connections, with their weights in lowest terms, in order.
pub(crate) fn weighted<F: Twin>(
    service: &Service,
    endpoints: &BTreeSet<EndpointAddress<F>>,
) -> Vec<(EndpointAddress<F>, usize)> {
    let of = |at: &EndpointAddress<F>| {
        let balancing = service.balancing.as_deref();
        balancing.map_or(1, |balancing: &Balancing| {
            let address: IpAddr = at.address.into();
            let mut weights = balancing.weights.iter();
            weights
                .find(|(known, _)| *known == address)
                .map_or(1, |(_, weight)| usize::from(*weight))
        })
    };
    let mut all: Vec<_> = endpoints.iter().map(|at| (*at, of(at))).collect();
    if all.iter().all(|(_, weight)| *weight == 0) {
        all.iter_mut().for_each(|(_, weight)| *weight = 1);
    }
    all.retain(|(_, weight)| *weight > 0);
    let divides = |n: &usize| all.iter().all(|(_, weight)| weight % n == 0);
    let divisor = (1..=100).rev().find(divides).unwrap_or(1);
    all.into_iter()
        .map(|(at, weight)| (at, weight / divisor))
        .collect()
}

/// Random clusters have no weights whose sum has to be scaled down.
fn repeated<F: Twin>(weighted: &[(EndpointAddress<F>, usize)]) -> Vec<EndpointAddress<F>> {
    let repeated = |(at, weight): &(EndpointAddress<F>, usize)| vec![*at; *weight];
    let slots: Vec<_> = weighted.iter().flat_map(repeated).collect();
    assert!(slots.len() <= 1000);
    slots
}

/// "Pseudocode 1: Populate Maglev hashing lookup table", with turns by weight.
fn populate<F: Twin>(weighted: &[(EndpointAddress<F>, usize)]) -> Vec<EndpointAddress<F>> {
    let n = weighted.len();
    if n == 0 {
        return Vec::new();
    }
    let m: u64 = match n {
        0..=4 => 1009,
        5..=16 => 10_007,
        _ => 65_537,
    };
    let below = |hash: u32, m: u64| u64::from(hash) * m / (1 << 32);
    let permutation = |i: usize, j: u64| {
        let at = weighted[i].0;
        let mut bytes = bytes_of::<F>(at.address);
        bytes.extend(at.port.get().to_be_bytes());
        let offset = below(jhash(&bytes, 0x6f66_6673), m);
        let skip = below(jhash(&bytes, 0x736b_6970), m - 1) + 1;
        ((offset + j * skip) % m) as usize
    };
    let heaviest = weighted.iter().map(|(_, weight)| *weight).max().unwrap();
    let mut next = vec![0; n];
    let mut entry = vec![usize::MAX; m as usize];
    let mut filled = 0;
    for turn in 1.. {
        for i in 0..n {
            let weight = weighted[i].1;
            // How many turns it has had by now, before and with this one.
            if turn * weight / heaviest == (turn - 1) * weight / heaviest {
                continue;
            }
            let mut c = permutation(i, next[i]);
            while entry[c] != usize::MAX {
                next[i] += 1;
                c = permutation(i, next[i]);
            }
            entry[c] = i;
            next[i] += 1;
            filled += 1;
            if filled == m {
                return entry.iter().map(|i| weighted[*i].0).collect();
            }
        }
    }
    unreachable!()
}

fn bytes_of<F: Twin>(address: F::Address) -> Vec<u8> {
    match address.into() {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// `include/linux/jhash.h`, for keys of 4 to 24 bytes on a machine of little endian.
fn jhash(key: &[u8], initval: u32) -> u32 {
    let start = 0xdead_beef_u32
        .wrapping_add(key.len() as u32)
        .wrapping_add(initval);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut padded = key.to_vec();
    padded.resize(24, 0);
    let word = |i: usize| u32::from_le_bytes(padded[i * 4..i * 4 + 4].try_into().unwrap());
    let mut first = 0;
    if key.len() > 12 {
        a = a.wrapping_add(word(0));
        b = b.wrapping_add(word(1));
        c = c.wrapping_add(word(2));
        // __jhash_mix
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        first = 3;
    }
    a = a.wrapping_add(word(first));
    b = b.wrapping_add(word(first + 1));
    c = c.wrapping_add(word(first + 2));
    // __jhash_final
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
