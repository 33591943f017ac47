//! A request that passed the gate.

use std::fmt;

use policy::Denial;

/// A request the policy has allowed. Only the gate makes one, of a wire
/// message; [`Authorized::convert`] is the only way from there to a domain
/// request. It can be neither copied nor changed: what was judged is what
/// runs, once.
#[must_use = "an authorised request that is dropped was not carried out"]
pub struct Authorized<T> {
    request: T,
    overridden: Option<Box<Denial>>,
}

impl<T> Authorized<T> {
    pub(crate) fn new(request: T, overridden: Option<Denial>) -> Self {
        Self {
            request,
            overridden: overridden.map(Box::new),
        }
    }

    /// The request, to look at.
    pub fn get(&self) -> &T {
        &self.request
    }

    /// The request, to carry out.
    pub fn into_inner(self) -> T {
        self.request
    }

    /// What would have denied the request, had the policy not set
    /// `AllowRequestsFailingPolicy`: the caller logs it as a warning.
    pub fn overridden(&self) -> Option<&Denial> {
        self.overridden.as_deref()
    }

    /// The same request in another form, still authorised. A conversion sees
    /// nothing but the request, so nothing else can slip in.
    ///
    /// # Errors
    /// Whatever the conversion says is wrong with the request.
    pub fn convert<Domain>(self) -> Result<Authorized<Domain>, Domain::Error>
    where
        Domain: TryFrom<T>,
    {
        Ok(Authorized {
            request: Domain::try_from(self.request)?,
            overridden: self.overridden,
        })
    }
}

/// Names the type only: requests are never logged whole.
impl<T> fmt::Debug for Authorized<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Authorized<{}>", std::any::type_name::<T>())
    }
}
