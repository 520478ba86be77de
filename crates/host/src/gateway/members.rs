//! The containers of one network that are up. They are kept on the thread of their first queues.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use crate::addressing::leases::Member;
use crate::protocols::Protocols;

/// Whether the containers of a network reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    Isolated,
    Open,
}

#[derive(Default)]
pub(crate) struct Members {
    /// In the order of their arrival.
    present: RefCell<Vec<Present>>,
    by_address: RefCell<HashMap<IpAddr, Rc<Protocols>>>,
    entered: Cell<u64>,
}

struct Present {
    id: u64,
    name: Option<String>,
    protocols: Rc<Protocols>,
}

impl Members {
    /// Adds a container until the returned value is dropped.
    pub(crate) fn enter(self: &Rc<Self>, member: Member, protocols: &Rc<Protocols>) -> Presence {
        let id = self.entered.get();
        self.entered.set(id + 1);
        let present = Present { id, name: member.name, protocols: Rc::clone(protocols) };
        self.present.borrow_mut().push(present);
        let addresses = protocols.context.addressing.subnets();
        let addresses = addresses.map(|subnet| (subnet.container, Rc::clone(protocols)));
        self.by_address.borrow_mut().extend(addresses);
        Presence { members: Rc::clone(self), id }
    }

    /// The container of this name. Without a name, the one that has been up for longest. A container that is on its way
    /// out does not count, even if its last bytes are still being delivered.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<Rc<Protocols>> {
        let present = self.present.borrow();
        let has = |one: &Present, name| one.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name));
        let is_meant = |one: &&Present| !one.protocols.is_leaving() && name.is_none_or(|name| has(one, name));
        present.iter().find(is_meant).map(|one| Rc::clone(&one.protocols))
    }

    /// The container that has this address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<Rc<Protocols>> {
        self.by_address.borrow().get(&address).map(Rc::clone)
    }
}

/// The container is listed until this is dropped.
pub(crate) struct Presence {
    members: Rc<Members>,
    id: u64,
}

impl Drop for Presence {
    fn drop(&mut self) {
        // Addresses are unique, because an address is leased for longer than this lasts.
        for gone in self.members.present.borrow_mut().extract_if(.., |one| one.id == self.id) {
            for subnet in gone.protocols.context.addressing.subnets() {
                self.members.by_address.borrow_mut().remove(&subnet.container);
            }
        }
    }
}
