package server

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/device"
)

// CreateGroup makes a group.
func (s *Server) CreateGroup(ctx context.Context, req *devicev1.CreateGroupRequest) (*devicev1.CreateGroupResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	made, err := s.service.CreateGroup(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &devicev1.CreateGroupResponse{Group: groupMessage(made)}, nil
}

// GetGroup returns a group.
func (s *Server) GetGroup(ctx context.Context, req *devicev1.GetGroupRequest) (*devicev1.GetGroupResponse, error) {
	found, err := s.service.FindGroup(ctx, req.GetOrganisationId(), req.GetGroupId())
	if err != nil {
		return nil, err
	}
	return &devicev1.GetGroupResponse{Group: groupMessage(found)}, nil
}

// ListGroups returns a page of an organisation's groups.
func (s *Server) ListGroups(ctx context.Context, req *devicev1.ListGroupsRequest) (*devicev1.ListGroupsResponse, error) {
	found, next, err := s.service.ListGroups(ctx, req.GetOrganisationId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.ListGroupsResponse{Groups: service.Messages(found, groupMessage), NextPageToken: next}, nil
}

// UpdateGroup gives a group another name.
func (s *Server) UpdateGroup(ctx context.Context, req *devicev1.UpdateGroupRequest) (*devicev1.UpdateGroupResponse, error) {
	changed, err := s.service.RenameGroup(ctx, req.GetOrganisationId(), req.GetGroupId(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &devicev1.UpdateGroupResponse{Group: groupMessage(changed)}, nil
}

// DeleteGroup takes a group away.
func (s *Server) DeleteGroup(ctx context.Context, req *devicev1.DeleteGroupRequest) (*devicev1.DeleteGroupResponse, error) {
	if err := s.service.DeleteGroup(ctx, req.GetOrganisationId(), req.GetGroupId()); err != nil {
		return nil, err
	}
	return &devicev1.DeleteGroupResponse{}, nil
}

// AddGroupDevices adds devices to a group.
func (s *Server) AddGroupDevices(ctx context.Context, req *devicev1.AddGroupDevicesRequest) (*devicev1.AddGroupDevicesResponse, error) {
	changed, err := s.service.AddGroupDevices(ctx, req.GetOrganisationId(), req.GetGroupId(), req.GetDeviceIds())
	if err != nil {
		return nil, err
	}
	return &devicev1.AddGroupDevicesResponse{Group: groupMessage(changed)}, nil
}

// RemoveGroupDevices takes devices out of a group.
func (s *Server) RemoveGroupDevices(ctx context.Context, req *devicev1.RemoveGroupDevicesRequest) (*devicev1.RemoveGroupDevicesResponse, error) {
	changed, err := s.service.RemoveGroupDevices(ctx, req.GetOrganisationId(), req.GetGroupId(), req.GetDeviceIds())
	if err != nil {
		return nil, err
	}
	return &devicev1.RemoveGroupDevicesResponse{Group: groupMessage(changed)}, nil
}

func groupMessage(g device.Group) *devicev1.Group {
	return &devicev1.Group{
		GroupId: g.ID, OrganisationId: g.OrganisationID, Name: g.Name, DeviceCount: int32(g.Devices),
		CreateTime: timestamppb.New(g.CreateTime), UpdateTime: timestamppb.New(g.UpdateTime),
	}
}
