//! The client against agents played in this process: one that behaves, and
//! ones that do not.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod rig;
