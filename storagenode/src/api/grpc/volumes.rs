//! `cairn.v1.Volumes`.

use cairn_proto::v1::{
    CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetVolumeRequest,
    GetVolumeResponse, ListVolumesRequest, ListVolumesResponse, volumes_server::Volumes,
};
use tonic::{Request, Response, Status};

use super::{Service, encode};
use crate::api::decode;

#[tonic::async_trait]
impl Volumes for Service {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let name = decode::volume_name(&request.name)?;
            let (copies, chunk) = (decode::given(request.copies), decode::given(request.chunk_size_bytes));
            let (copies, chunk_size_bytes) = decode::volume_settings(copies, chunk)?;
            let (volume, created) = self.0.files.create_volume(&name, copies, chunk_size_bytes).await?;
            Ok(CreateVolumeResponse { volume: Some(encode::volume(volume)), created })
        })
        .await
    }

    async fn get_volume(
        &self,
        request: Request<GetVolumeRequest>,
    ) -> Result<Response<GetVolumeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let volume = self.0.files.volume(&decode::volume_name(&request.name)?).await?;
            Ok(GetVolumeResponse { volume: Some(encode::volume(volume)) })
        })
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            let page = request.page.unwrap_or_default();
            let limit = decode::page_size(page.size)?;
            let (volumes, next_page_token) =
                self.0.files.volumes(limit, &decode::page_token(&page.token)?).await?;
            Ok(ListVolumesResponse {
                volumes: volumes.into_iter().map(encode::volume).collect(),
                next_page_token,
            })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.answer(&metadata, Some(self.0.limits.unary), async {
            self.0.files.delete_volume(&decode::volume_name(&request.name)?, request.with_files).await?;
            Ok(DeleteVolumeResponse {})
        })
        .await
    }
}
