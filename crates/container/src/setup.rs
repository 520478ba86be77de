//! Refuses a setup that the kernel would otherwise refuse later with a vaguer error, or misunderstand.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;

use nsnet_proto::{DEVICE_NAME_MAX, InterfaceAddress, Setup};

use crate::Error;

pub(crate) fn check(setup: &Setup) -> Result<(), Error> {
    check_name(&setup.device)?;
    if setup.addresses.is_empty() {
        return Err(impossible("it has no address"));
    }
    let mut families = HashSet::new();
    for of in &setup.addresses {
        check_address(of)?;
        if !families.insert(of.address.is_ipv6()) {
            return Err(impossible(format!("{} is the second address of its family", of.address)));
        }
        let least = if of.address.is_ipv6() { IPV6_MTU_MIN } else { IPV4_MTU_MIN };
        if setup.mtu < least {
            let version = if of.address.is_ipv6() { "IPv6" } else { "IPv4" };
            return Err(impossible(format!("MTU {} is below {least}, the least for {version}", setup.mtu)));
        }
    }
    Ok(())
}

/// Least MTU of an IPv6 link, RFC 8200 section 5.
const IPV6_MTU_MIN: u16 = 1280;
/// The largest packet that every IPv4 host accepts, RFC 791 section 3.1.
const IPV4_MTU_MIN: u16 = 576;

fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > DEVICE_NAME_MAX {
        return Err(impossible(format!("the device name {name:?} is not 1 to {DEVICE_NAME_MAX} bytes long")));
    }
    // `dev_valid_name` in net/core/dev.c. With a `%`, the kernel would choose a name of its own.
    let taken = ["lo", ".", ".."].contains(&name);
    if taken || !name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte)) {
        return Err(impossible(format!("{name:?} is not a device name")));
    }
    Ok(())
}

fn check_address(of: &InterfaceAddress) -> Result<(), Error> {
    let InterfaceAddress { address, prefix_len, gateway, .. } = *of;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    if prefix_len == 0 || prefix_len > bits {
        return Err(impossible(format!("the prefix length of {address}/{prefix_len} is not 1 to {bits}")));
    }
    for address in [address, gateway] {
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(impossible(format!("{address} cannot be the address of a host")));
        }
    }
    if gateway == address || !same_prefix(address, gateway, prefix_len) {
        return Err(impossible(format!(
            "the gateway {gateway} is not another host in {address}/{prefix_len}"
        )));
    }
    Ok(())
}

fn same_prefix(one: IpAddr, other: IpAddr, prefix_len: u8) -> bool {
    let differing = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    differing >= u32::from(prefix_len)
}

fn impossible(why: impl Into<Cow<'static, str>>) -> Error {
    Error::refused("check the host's setup", why).with_remedy("change it where Network::builder is called")
}

#[cfg(test)]
mod tests {
    use nsnet_proto::Offload;

    use super::*;
    use crate::testing::setup;

    #[track_caller]
    fn assert_impossible(change: impl FnOnce(&mut Setup), names: &str) {
        let mut setup = setup(Offload::NONE);
        change(&mut setup);
        let error = check(&setup).unwrap_err().to_string();
        assert!(error.starts_with("check the host's setup: ") && error.contains(names), "{error}");
    }

    #[test]
    fn default_setup_is_possible() {
        check(&setup(Offload::ALL)).unwrap();
    }

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "sixteen-bytes-xx", "a/b", "a b", "tun%d", "lo", "..", "a:b", "tün", "a\0b"] {
            assert_impossible(|setup| setup.device = name.to_owned(), "name");
        }
    }

    #[test]
    fn mtu_is_not_below_what_the_address_family_needs() {
        assert_impossible(|setup| setup.mtu = 1279, "MTU 1279 is below 1280, the least for IPv6");
        assert_impossible(|setup| setup.mtu = 575, "MTU 575 is below 576, the least for IPv4");
        let mut ipv4_only = setup(Offload::NONE);
        ipv4_only.addresses.truncate(1);
        ipv4_only.mtu = 576;
        check(&ipv4_only).unwrap();
    }

    #[test]
    fn impossible_addresses_are_refused() {
        assert_impossible(|setup| setup.addresses.clear(), "no address");
        assert_impossible(|setup| setup.addresses[0].prefix_len = 33, "10.99.2.100/33 is not 1 to 32");
        assert_impossible(|setup| setup.addresses[1].prefix_len = 129, "fd00::100/129 is not 1 to 128");
        assert_impossible(|setup| setup.addresses[0].prefix_len = 0, "10.99.2.100/0");
        assert_impossible(|setup| setup.addresses[0].address = "224.0.0.1".parse().unwrap(), "224.0.0.1");
        assert_impossible(|setup| setup.addresses[1].gateway = "::".parse().unwrap(), ":: cannot be");
        assert_impossible(
            |setup| setup.addresses[0].gateway = "10.99.3.2".parse().unwrap(),
            "gateway 10.99.3.2",
        );
        assert_impossible(|setup| setup.addresses[0].gateway = "fd00::2".parse().unwrap(), "gateway fd00::2");
        assert_impossible(|setup| setup.addresses[0].gateway = setup.addresses[0].address, "another host");
        assert_impossible(|setup| setup.addresses[1] = setup.addresses[0], "second address of its family");
    }
}
