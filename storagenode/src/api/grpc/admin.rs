//! `cairn.v1.Admin`.

use std::collections::HashSet;

use cairn_proto::v1::{
    IntendedNode, SetIntentRequest, SetIntentResponse, StatusRequest, StatusResponse, admin_server::Admin,
};
use tonic::{Request, Response, Status};

use super::Service;
use crate::api::status::Refusal;

/// Node numbers have 16 bits; so many nodes are beyond what placement is made for anyway.
const MAX_NODES: usize = 4_096;
const MAX_LABEL_BYTES: usize = 253;

#[tonic::async_trait]
impl Admin for Service {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.answer(request.metadata(), Some(self.0.limits.unary), async {
            Ok(self.0.cluster.status().await?)
        })
        .await
    }

    async fn set_intent(
        &self,
        request: Request<SetIntentRequest>,
    ) -> Result<Response<SetIntentResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            check_nodes(&request.nodes)?;
            let generation = self.0.cluster.set_intent(request.generation, request.nodes).await?;
            Ok(SetIntentResponse { generation })
        })
        .await
    }
}

fn check_nodes(nodes: &[IntendedNode]) -> Result<(), Refusal> {
    if nodes.len() > MAX_NODES {
        return Err(Refusal::invalid(format!("{} nodes are more than {MAX_NODES}", nodes.len())));
    }
    let mut names = HashSet::new();
    for node in nodes {
        for (what, text) in [("name", &node.name), ("zone", &node.zone)] {
            if text.is_empty()
                || text.len() > MAX_LABEL_BYTES
                || !text.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(Refusal::invalid(format!(
                    "{text:?} is no node's {what}: use 1 to {MAX_LABEL_BYTES} bytes of visible ASCII"
                )));
            }
        }
        if !names.insert(&node.name) {
            return Err(Refusal::invalid(format!("node {:?} is named twice", node.name)));
        }
    }
    Ok(())
}
