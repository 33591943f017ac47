//! Both ends of every transport that a host without a VM can carry.

#[cfg(test)]
mod rig;
#[cfg(test)]
mod serial;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod streams;
