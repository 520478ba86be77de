//! The containers of one network that are up, on the thread of their first queues.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use crate::gateway::Gateway;
use crate::leases::Member;

#[derive(Default)]
pub(crate) struct Members {
    /// In the order in which they came.
    entries: RefCell<Vec<Entry>>,
    by_address: RefCell<HashMap<IpAddr, Rc<Gateway>>>,
    entered: Cell<u64>,
}

struct Entry {
    id: u64,
    name: Option<String>,
    gateway: Rc<Gateway>,
}

impl Members {
    /// Makes a container known until what is returned is dropped.
    pub(crate) fn enter(self: &Rc<Self>, member: Member, gateway: &Rc<Gateway>) -> Presence {
        let id = self.entered.get();
        self.entered.set(id + 1);
        let entry = Entry { id, name: member.name, gateway: Rc::clone(gateway) };
        self.entries.borrow_mut().push(entry);
        let addresses = gateway.addressing.subnets().map(|subnet| (subnet.container, Rc::clone(gateway)));
        self.by_address.borrow_mut().extend(addresses);
        Presence { members: Rc::clone(self), id }
    }

    /// The container of this name; without a name, the one that has been up for longest. One whose end of the link is
    /// gone is none, though its last bytes are still being delivered.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<Rc<Gateway>> {
        let entries = self.entries.borrow();
        let has =
            |entry: &Entry, name| entry.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name));
        let is_meant =
            |entry: &&Entry| !entry.gateway.is_orphaned() && name.is_none_or(|name| has(entry, name));
        entries.iter().find(is_meant).map(|entry| Rc::clone(&entry.gateway))
    }

    /// The container that has this address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<Rc<Gateway>> {
        self.by_address.borrow().get(&address).map(Rc::clone)
    }
}

/// A container is up until this is dropped.
pub(crate) struct Presence {
    members: Rc<Members>,
    id: u64,
}

impl Drop for Presence {
    fn drop(&mut self) {
        // No two have the same address: it is leased for longer than this lasts.
        for gone in self.members.entries.borrow_mut().extract_if(.., |entry| entry.id == self.id) {
            for subnet in gone.gateway.addressing.subnets() {
                self.members.by_address.borrow_mut().remove(&subnet.container);
            }
        }
    }
}
