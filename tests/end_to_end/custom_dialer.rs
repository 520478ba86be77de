//! The example `custom-dialer`: an allowlist as a firewall. Its container side is the example `rootless-shell`.

use std::process::Command;

use crate::world::{Carriage, SERVER, World, example, in_both_carriages, server};

in_both_carriages! {
    listed_address_is_reached_and_the_rest_is_prohibited,
}

fn listed_address_is_reached_and_the_rest_is_prohibited(world: &World) {
    for address in SERVER {
        let allowed = server::http(world.listen(address), "a page\n");
        let forbidden = server::http(world.listen(address), "a secret\n");
        let script = format!("curl -sS -m 10 http://{allowed}/; curl -sS -m 10 http://{forbidden}/");
        let mut command = Command::new(example("custom-dialer"));
        command.arg(allowed.to_string()).arg("--").arg(example("rootless-shell"));
        if world.carriage() == Carriage::Shuttled {
            command.arg("--shuttle");
        }
        let output = command.args(["--", "sh", "-c", &script]).output().unwrap();
        let page = String::from_utf8_lossy(&output.stdout);
        let decisions = String::from_utf8_lossy(&output.stderr);
        assert_eq!(page, "a page\n", "{decisions}");
        for (decision, address) in [("allow", allowed), ("deny", forbidden)] {
            let made = |line: &str| line.starts_with(decision) && line.ends_with(&address.to_string());
            assert!(decisions.lines().any(made), "no line says {decision} {address} in\n{decisions}");
        }
        // CURLE_COULDNT_CONNECT
        assert_eq!(output.status.code(), Some(7), "{decisions}");
    }
}
