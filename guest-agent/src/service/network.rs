//! Interfaces, routes and neighbors: a thin layer over the runtime's network.

use super::Agent;
use super::error::ServiceError;
use authz::Authorized;
use guest_runtime::hotplug;
use guest_runtime::network::{InterfaceSpec, NeighborSpec, RouteSpec};

use std::time::Duration;

pub(crate) use guest_runtime::network::{NetworkPlan, has_links};

/// An interface to set up.
#[derive(Debug)]
pub(crate) struct UpdateInterface {
    pub(crate) interface: InterfaceSpec,
    /// Where it is waited for, by its slots behind the first root complex.
    pub(crate) slots: Option<Vec<u8>>,
}

/// How long a link may take to come; the Kata agent's figure.
const LINK_DEADLINE: Duration = Duration::from_secs(3);

/// A question for the links of the guest.
#[derive(Debug)]
pub(crate) struct ListInterfaces;

/// A question for the main routing table.
#[derive(Debug)]
pub(crate) struct ListRoutes;

/// Routes to add.
#[derive(Debug)]
pub(crate) struct UpdateRoutes {
    pub(crate) routes: Vec<RouteSpec>,
}

/// Permanent neighbor entries to add.
#[derive(Debug)]
pub(crate) struct AddNeighbors {
    pub(crate) neighbors: Vec<NeighborSpec>,
}

impl Agent {
    /// Gives a link its name, addresses and MTU.
    pub(crate) async fn update_interface(
        &self,
        request: Authorized<UpdateInterface>,
    ) -> Result<(), ServiceError> {
        self.require_network("update an interface")?;
        let network = self.network.clone();
        let recipe = async move {
            let UpdateInterface { interface, slots } = request.get();
            let Some(slots) = slots else {
                return Ok(network.update_interface(interface).await?);
            };
            let found = hotplug::wait_for_link(slots, LINK_DEADLINE).await?;
            Ok(network.update_found_interface(&found, interface).await?)
        };
        self.recipes.run(recipe).await
    }

    /// Adds routes and gives the main table as it then is.
    pub(crate) async fn update_routes(
        &self,
        request: Authorized<UpdateRoutes>,
    ) -> Result<Vec<RouteSpec>, ServiceError> {
        self.require_network("update the routes")?;
        let network = self.network.clone();
        self.recipes
            .run(async move {
                network.update_routes(&request.get().routes).await?;
                Ok(network.list_routes().await?)
            })
            .await
    }

    /// The links of the guest.
    pub(crate) async fn list_interfaces(
        &self,
        _request: Authorized<ListInterfaces>,
    ) -> Result<Vec<InterfaceSpec>, ServiceError> {
        Ok(self.network.list_interfaces().await?)
    }

    /// The main routing table.
    pub(crate) async fn list_routes(
        &self,
        _request: Authorized<ListRoutes>,
    ) -> Result<Vec<RouteSpec>, ServiceError> {
        Ok(self.network.list_routes().await?)
    }

    /// Adds neighbor entries.
    pub(crate) async fn add_neighbors(
        &self,
        request: Authorized<AddNeighbors>,
    ) -> Result<(), ServiceError> {
        self.require_network("add neighbors")?;
        let network = self.network.clone();
        self.recipes
            .run(async move { Ok(network.add_neighbors(&request.get().neighbors).await?) })
            .await
    }
}
