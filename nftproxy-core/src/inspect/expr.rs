//! Rules as text: as nft(8) has them if they are made of what we write, else their kernel
//! expressions, much as `nft --debug=netlink` has them.

use std::fmt::Write;

use super::raise::raise;
use crate::model::Family;
use crate::ruleset::Rule;
use crate::ruleset::expr::{
    CLIENT_HASH_SEED, CtOriginalKey, Expr, LookupData, MetaKey, PayloadBase, Reject,
};

/// A rule's text, wherever it comes from.
pub(super) fn text<F: Family>(rule: &Rule) -> String {
    if !rule.text.is_empty() {
        return rule.text.clone();
    }
    if let Some(text) = raise::<F>(&rule.exprs) {
        return text;
    }
    let all: Vec<_> = rule.exprs.iter().map(one).collect();
    all.join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn one(expr: &Expr) -> String {
    match expr {
        Expr::Payload {
            base,
            offset,
            len,
            register,
        } => {
            let base = match base {
                PayloadBase::Network => "network",
                PayloadBase::Transport => "transport",
            };
            format!("[ payload load {len}b @ {base} header + {offset} => reg {register} ]")
        }
        Expr::Meta { key, register } => {
            let key = match key {
                MetaKey::L4Proto => "l4proto",
                MetaKey::Mark => "mark",
                MetaKey::Iifname => "iifname",
            };
            format!("[ meta load {key} => reg {register} ]")
        }
        Expr::SetMark { register } => format!("[ meta set mark with reg {register} ]"),
        Expr::CtStatus { register } => format!("[ ct load status => reg {register} ]"),
        Expr::CtOriginal { key, register } => {
            let key = match key {
                CtOriginalKey::Daddr => "dst",
                CtOriginalKey::Dport => "proto_dst",
            };
            format!("[ ct load {key} => reg {register}, dir original ]")
        }
        Expr::Update {
            set, key, timeout, ..
        } => format!("[ dynset update reg_key {key} set {set} timeout {timeout}ms ]"),
        Expr::FibType {
            destination,
            register,
        } => {
            let address = if *destination { "daddr" } else { "saddr" };
            format!("[ fib {address} type => reg {register} ]")
        }
        Expr::Numgen { modulus, register } => {
            format!("[ numgen reg {register} = random mod {modulus} ]")
        }
        Expr::Hash {
            from,
            len,
            modulus,
            register,
        } => {
            format!(
                "[ hash reg {register} = jhash(reg {from}, {len}, {CLIENT_HASH_SEED:#x}) % mod {modulus} ]"
            )
        }
        Expr::Cmp {
            negate,
            register,
            value,
        } => {
            let op = if *negate { "neq" } else { "eq" };
            format!("[ cmp {op} reg {register} {} ]", hex(value))
        }
        Expr::Bitwise {
            register,
            mask,
            xor,
        } => {
            let (mask, xor) = (hex(mask), hex(xor));
            format!("[ bitwise reg {register} = ( reg {register} & {mask} ) ^ {xor} ]")
        }
        Expr::Lookup {
            set,
            register,
            data,
        } => {
            let data = match data {
                LookupData::None => String::new(),
                LookupData::Verdict => " dreg 0".into(),
                LookupData::Load(to) => format!(" dreg {to}"),
            };
            format!("[ lookup reg {register} set {set}{data} ]")
        }
        Expr::LookupAbsent { set, register } => format!("[ lookup reg {register} set {set} 0x1 ]"),
        Expr::Verdict(verdict) => verdict.nft(),
        Expr::Dnat { address, port } => {
            format!("[ nat dnat addr_min reg {address} proto_min reg {port} ]")
        }
        Expr::Counter => "counter".into(),
        Expr::Masquerade => "masquerade fully-random".into(),
        Expr::Reject(Reject::TcpReset) => "reject with tcp reset".into(),
        Expr::Reject(Reject::PortUnreachable) => "reject".into(),
        Expr::Foreign(what) => what.clone(),
    }
}
