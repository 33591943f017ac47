//! Interfaces, routes and neighbors: a thin layer over the runtime's network.

use super::Agent;
use super::error::ServiceError;
use authz::Authorized;
use guest_runtime::network::{InterfaceSpec, NeighborSpec, RouteSpec};

pub(crate) use guest_runtime::network::{NetworkPlan, has_links};

/// An interface to set up.
#[derive(Debug)]
pub(crate) struct UpdateInterface(pub(crate) InterfaceSpec);

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
        self.recipes
            .run(async move { Ok(network.update_interface(&request.get().0).await?) })
            .await
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
