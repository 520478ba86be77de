use proptest::prelude::*;

use super::*;

fn v4_error(text: &str) -> String {
    text.parse::<Ipv4Subnet>().unwrap_err().to_string()
}

#[test]
fn the_defaults_have_the_numbers_of_slirp() {
    let Ipv4Subnet { prefix, container, gateway, dns } = Ipv4Subnet::default();
    assert_eq!(format!("{prefix} {container} {gateway} {dns}"), "10.0.2.0/24 10.0.2.100 10.0.2.2 10.0.2.3");
    let Ipv6Subnet { prefix, container, gateway, dns } = Ipv6Subnet::default();
    assert_eq!(format!("{prefix} {container} {gateway} {dns}"), "fd00::/64 fd00::100 fd00::2 fd00::3");
    assert_eq!(Ipv4Subnet::default().check(), Ok(()));
    assert_eq!(Ipv6Subnet::default().check(), Ok(()));
}

#[test]
fn a_small_prefix_has_other_numbers() {
    let container = |text: &str| text.parse::<Ipv4Subnet>().unwrap().container_address().to_string();
    assert_eq!(container("10.9.0.128/25"), "10.9.0.228");
    assert_eq!(container("10.9.0.64/26"), "10.9.0.68");
    assert_eq!(container("10.9.0.8/29"), "10.9.0.12");
    let container = |text: &str| text.parse::<Ipv6Subnet>().unwrap().container_address().to_string();
    assert_eq!(container("fd99::/119"), "fd99::100");
    assert_eq!(container("fd99::/120"), "fd99::4");
    assert_eq!(container("fd99::8/125"), "fd99::c");
}

#[test]
fn a_prefix_that_cannot_work_is_refused_with_a_remedy() {
    assert_eq!(v4_error("10.0.2.7/24"), "10.0.2.7/24 has bits set behind its prefix: write 10.0.2.0/24");
    assert!(v4_error("10.0.2.0/30").contains("at most 29 bits"));
    assert!("fd00::/126".parse::<Ipv6Subnet>().unwrap_err().to_string().contains("at most 125 bits"));
    for (prefix, reserved) in [
        ("0.0.0.0/0", "0.0.0.0/8"),
        ("127.0.0.0/24", "127.0.0.0/8"),
        ("64.0.0.0/2", "127.0.0.0/8"),
        ("239.1.0.0/16", "224.0.0.0/4"),
    ] {
        assert!(v4_error(prefix).contains(&format!("overlaps {reserved}")), "{prefix}");
    }
    for prefix in ["::/0", "::/120", "fe80::/64", "ff02::/16", "::ffff:10.0.0.0/104"] {
        let error = prefix.parse::<Ipv6Subnet>().unwrap_err();
        assert!(matches!(error, SubnetError::Reserved { .. }), "{error}");
    }
}

#[test]
fn addresses_that_are_not_three_hosts_are_named() {
    let default = Ipv4Subnet::default();
    for (subnet, said) in [
        (
            default.gateway([10, 0, 3, 1].into()),
            "the gateway address 10.0.3.1 is not of a host in 10.0.2.0/24",
        ),
        (default.dns([10, 0, 2, 0].into()), "the dns address 10.0.2.0 is not of a host"),
        (default.container([10, 0, 2, 255].into()), "the container address 10.0.2.255 is not of a host"),
        (default.container([10, 0, 2, 3].into()), "the container and the dns address are both 10.0.2.3"),
        (default.gateway([10, 0, 2, 3].into()), "the gateway and the dns address are both 10.0.2.3"),
    ] {
        let error = subnet.check().unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
        assert_eq!(v4_error(&subnet.to_string()), error);
    }
    // There is no broadcast in IPv6.
    assert_eq!(Ipv6Subnet::default().dns("fd00::ffff:ffff:ffff:ffff".parse().unwrap()).check(), Ok(()));
    assert!(Ipv6Subnet::default().dns("fd00::".parse().unwrap()).check().is_err());
}

#[test]
fn what_does_not_fit_in_a_text_is_named() {
    for (text, position, expected) in [
        ("", 0, "a prefix as Ipv4Net reads it"),
        ("10.0.2.0", 0, "a prefix as Ipv4Net reads it"),
        ("fd00::/64", 0, "a prefix as Ipv4Net reads it"),
        ("10.0.2.0/24,router=10.0.2.1", 12, "container=, gateway= or dns="),
        ("10.0.2.0/24,dns", 12, "an address as Ipv4Addr reads it"),
        ("10.0.2.0/24,dns=10.0.2.9,gateway=::1", 25, "an address as Ipv4Addr reads it"),
    ] {
        let error = text.parse::<Ipv4Subnet>().unwrap_err();
        let SubnetError::Parse(error) = error else { panic!("{text}: {error}") };
        assert_eq!((error.position(), error.expected()), (position, expected));
    }
}

proptest! {
    #[test]
    fn an_ipv4_subnet_survives_its_text(bits: u32, length in 0..=29u8, hosts: [u8; 3]) {
        let prefix = Ipv4Net::new(bits.into(), length).unwrap().trunc();
        let host = |number: u8| Ipv4Addr::from_bits(prefix.network().to_bits() | u32::from(number % 8));
        if let Ok(usual) = Ipv4Subnet::new(prefix) {
            prop_assert_eq!(usual.check(), Ok(()));
            prop_assert_eq!(usual.to_string(), prefix.to_string());
            let [container, gateway, dns] = hosts.map(host);
            let subnet = usual.container(container).gateway(gateway).dns(dns);
            prop_assert_eq!(subnet.to_string().parse(), subnet.check().map(|()| subnet));
        }
    }

    #[test]
    fn an_ipv6_subnet_survives_its_text(bits: u128, length in 0..=125u8, hosts: [u8; 3]) {
        let prefix = Ipv6Net::new(bits.into(), length).unwrap().trunc();
        let host = |number: u8| Ipv6Addr::from_bits(prefix.network().to_bits() | u128::from(number % 8));
        if let Ok(usual) = Ipv6Subnet::new(prefix) {
            prop_assert_eq!(usual.check(), Ok(()));
            prop_assert_eq!(usual.to_string(), prefix.to_string());
            let [container, gateway, dns] = hosts.map(host);
            let subnet = usual.container(container).gateway(gateway).dns(dns);
            prop_assert_eq!(subnet.to_string().parse(), subnet.check().map(|()| subnet));
        }
    }
}
