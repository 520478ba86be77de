//! The containers of one network that are up, on the thread of their first queues.

#![expect(dead_code, reason = "looked up by what is published and by other containers")]

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use crate::gateway::Gateway;
use crate::leases::Member;

#[derive(Default)]
pub(crate) struct Members {
    /// In the order in which they came.
    entries: RefCell<Vec<Entry>>,
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
        Presence { members: Rc::clone(self), id }
    }

    /// The container of this name; without a name, the one that has been up for longest.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<Rc<Gateway>> {
        let entries = self.entries.borrow();
        let is_meant = |entry: &&Entry| name.is_none_or(|name| entry.name.as_deref() == Some(name));
        entries.iter().find(is_meant).map(|entry| Rc::clone(&entry.gateway))
    }

    /// The container that has this address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<Rc<Gateway>> {
        let entries = self.entries.borrow();
        let has_it = |entry: &&Entry| entry.gateway.addressing.subnet_of_container(address).is_some();
        entries.iter().find(has_it).map(|entry| Rc::clone(&entry.gateway))
    }
}

/// A container is up until this is dropped.
pub(crate) struct Presence {
    members: Rc<Members>,
    id: u64,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.members.entries.borrow_mut().retain(|entry| entry.id != self.id);
    }
}
