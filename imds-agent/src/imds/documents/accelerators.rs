//! What is attached to the instance over the network, as the software that uses it reads it.
//!
//! Neither document is in the user guide. That of Elastic Inference is as Amazon's own mock of the service has it; of that of
//! Elastic Graphics the two members are known that provisioning scripts read, and that it says the id (user guide of 2017).

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::registry::accelerators::{ElasticGpuAssociation, ElasticInferenceAcceleratorAssociation};

/// `elastic-gpus/associations/{elastic-gpu-id}`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ElasticGpu<'v> {
    elastic_gpu_id: &'v str,
    #[serde(skip_serializing_if = "Option::is_none")]
    elastic_gpu_type: Option<&'v str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_config: Option<Connection>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    ipv4_address: Ipv4Addr,
}

impl<'v> ElasticGpu<'v> {
    pub fn of(association: &'v ElasticGpuAssociation) -> Self {
        let connection = association.connection_config.as_ref();
        Self {
            elastic_gpu_id: association.elastic_gpu_id.as_str(),
            elastic_gpu_type: association.elastic_gpu_type.as_deref(),
            connection_config: connection.map(|connection| Connection {
                ipv4_address: connection.ipv4_address,
            }),
        }
    }
}

/// `elastic-inference/associations/{eia-id}`.
#[derive(Serialize)]
pub struct ElasticInferenceAccelerator<'v> {
    version_2018_04_12: AcceleratorOf2018<'v>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct AcceleratorOf2018<'v> {
    elastic_inference_accelerator_id: &'v str,
    #[serde(skip_serializing_if = "Option::is_none")]
    elastic_inference_accelerator_type: Option<&'v str>,
}

impl<'v> ElasticInferenceAccelerator<'v> {
    pub fn of(association: &'v ElasticInferenceAcceleratorAssociation) -> Option<Self> {
        Some(Self {
            version_2018_04_12: AcceleratorOf2018 {
                elastic_inference_accelerator_id: association.accelerator_id()?,
                elastic_inference_accelerator_type: association.elastic_inference_accelerator_type.as_deref(),
            },
        })
    }
}
