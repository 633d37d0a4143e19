//! What an instance has attached over the network: Elastic Graphics and Elastic Inference accelerators.
//!
//! Read first: EC2 API reference, data types `ElasticGpuAssociation`, `ElasticInferenceAcceleratorAssociation` and
//! `ElasticGpus`. `describe-instances` says that there is an association and not what it is of; what more the instance is
//! to be told is *ours* as a field of the association, in the words of the API that says it on EC2. EC2 has ended both
//! services; a hypervisor that offers the like has agents in its images that look for them here.

use std::{fmt, net::Ipv4Addr};

use serde::{Deserialize, Deserializer, Serialize};

use super::instance::{check_name, text_id};

text_id! {
    /// Names one Elastic Graphics accelerator: `egpu-f6d94dfa66df4883b284e96db7397ee6`.
    ElasticGpuId check_name
}

/// An Elastic Graphics accelerator of the instance.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ElasticGpuAssociation {
    /// Which one.
    pub elastic_gpu_id: ElasticGpuId,
    /// *Ours*, as `describe-elastic-gpus` says it: `eg1.medium`.
    pub elastic_gpu_type: Option<String>,
    /// *Ours*: where it is reached.
    pub connection_config: Option<ConnectionConfig>,
}

/// Where an Elastic Graphics accelerator is reached.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConnectionConfig {
    /// The address of its interface in the instance's network.
    pub ipv4_address: Ipv4Addr,
}

/// An Elastic Inference accelerator of the instance.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ElasticInferenceAcceleratorAssociation {
    /// Which one: `arn:aws:elastic-inference:<region>:<account>:elastic-inference-accelerator/<id>`.
    pub elastic_inference_accelerator_arn: String,
    /// *Ours*, as `elastic-inference describe-accelerators` says it: `eia1.medium`.
    pub elastic_inference_accelerator_type: Option<String>,
}

impl ElasticInferenceAcceleratorAssociation {
    /// The id that its ARN ends in; nothing where that is none that a path can have.
    pub fn accelerator_id(&self) -> Option<&str> {
        self.end_of_arn().filter(|id| check_name(id).is_ok())
    }

    /// What stands behind the last slash of its ARN, if anything does.
    pub(super) fn end_of_arn(&self) -> Option<&str> {
        let (_, end) = self.elastic_inference_accelerator_arn.rsplit_once('/')?;
        (!end.is_empty()).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accelerators_id_is_the_end_of_its_arn() {
        let id = |arn: &str| {
            let association = ElasticInferenceAcceleratorAssociation {
                elastic_inference_accelerator_arn: arn.to_owned(),
                elastic_inference_accelerator_type: None,
            };
            association.accelerator_id().map(str::to_owned)
        };
        let arn = "arn:aws:elastic-inference:us-east-1:123456789012:elastic-inference-accelerator/eia-1";
        assert_eq!(id(arn).as_deref(), Some("eia-1"));
        for none in ["", "eia-1", "arn:aws:elastic-inference/", "arn/eia 1"] {
            assert_eq!(id(none), None, "{none}");
        }
    }
}
