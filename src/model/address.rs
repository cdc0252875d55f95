//! Services that are reached at the addresses of their containers, which are known while these run.

use super::{ApiServer, Health, HttpCall, JobProbe, Managed, Service, Unload};
use std::net::IpAddr;

/// Placeholder in a URL or host for the address of the service's container.
pub const CONTAINER: &str = "{container}";

/// Reason why a service that is reached at its container's own address cannot be asked.
pub const NO_ADDRESS: &str = "its container has no address of its own";

impl Service {
    /// Reports whether anything that the service is asked goes to its container's own address.
    pub fn is_by_address(&self) -> bool {
        self.clone().places().any(|place| place.contains(CONTAINER))
    }

    /// Returns the service as it is asked at each of these addresses of its containers, if it is
    /// reached at those; otherwise returns it once, as it is configured.
    pub fn at(&self, addresses: &[IpAddr]) -> Vec<Service> {
        match self.is_by_address() {
            true => addresses.iter().map(|address| self.at_address(*address)).collect(),
            false => vec![self.clone()],
        }
    }

    fn at_address(&self, address: IpAddr) -> Service {
        let mut service = self.clone();
        if let Some(Health::Tcp { host, .. }) = &mut service.health {
            *host = host.replace(CONTAINER, &address.to_string());
        }
        let in_url = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        for place in service.places() {
            *place = place.replace(CONTAINER, &in_url);
        }
        service
    }

    /// Returns all URLs and hosts at which the service is asked.
    fn places(&mut self) -> impl Iterator<Item = &mut String> {
        let health = self.health.as_mut().map(|health| match health {
            Health::Http(url) => url,
            Health::Tcp { host, .. } => host,
        });
        let jobs = self.jobs.as_mut().and_then(|jobs| match jobs {
            JobProbe::Server(ApiServer { url, .. })
            | JobProbe::Json { url, .. }
            | JobProbe::Metric { url, .. } => Some(url),
            JobProbe::Command { .. } => None,
        });
        let unload = self.unload.as_mut().map(|unload| match unload {
            Unload::Server(ApiServer { url, .. }) | Unload::Call(HttpCall { url, .. }) => url,
        });
        let server = self.server.as_mut().map(|server| &mut server.url);
        let warm_up = self.warm_up.as_mut().map(|call| &mut call.url);
        [health, jobs, unload, server, warm_up].into_iter().flatten()
    }
}

impl Managed {
    /// Returns the addresses of the service's containers, one of each container.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.containers.iter().filter_map(|one| one.addresses.first().copied()).collect()
    }
}
