package server

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/device"
)

// SendCommand tells the player of a device to do something.
func (s *Server) SendCommand(ctx context.Context, req *devicev1.SendCommandRequest) (*devicev1.SendCommandResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	made, err := s.service.SendCommand(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), req.GetDeviceId(), instruction(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.SendCommandResponse{Command: commandMessage(made)}, nil
}

// GetCommand returns a command with what became of it.
func (s *Server) GetCommand(ctx context.Context, req *devicev1.GetCommandRequest) (*devicev1.GetCommandResponse, error) {
	found, err := s.service.FindCommand(ctx, req.GetOrganisationId(), req.GetDeviceId(), req.GetCommandId())
	if err != nil {
		return nil, err
	}
	return &devicev1.GetCommandResponse{Command: commandMessage(found)}, nil
}

// ListCommands returns a page of a device's commands.
func (s *Server) ListCommands(ctx context.Context, req *devicev1.ListCommandsRequest) (*devicev1.ListCommandsResponse, error) {
	found, next, err := s.service.ListCommands(ctx, req.GetOrganisationId(), req.GetDeviceId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.ListCommandsResponse{Commands: service.Messages(found, commandMessage), NextPageToken: next}, nil
}

// SendGroupCommand tells the players of a group's devices to do something.
func (s *Server) SendGroupCommand(ctx context.Context, req *devicev1.SendGroupCommandRequest) (*devicev1.SendGroupCommandResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	made, err := s.service.SendGroupCommand(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), req.GetGroupId(), instruction(req))
	if err != nil {
		return nil, err
	}
	return &devicev1.SendGroupCommandResponse{Command: groupCommandMessage(made)}, nil
}

// GetGroupCommand counts what became of commands that were sent to a group.
func (s *Server) GetGroupCommand(ctx context.Context, req *devicev1.GetGroupCommandRequest) (*devicev1.GetGroupCommandResponse, error) {
	found, err := s.service.FindGroupCommand(ctx, req.GetOrganisationId(), req.GetGroupId(), req.GetGroupCommandId())
	if err != nil {
		return nil, err
	}
	return &devicev1.GetGroupCommandResponse{Command: groupCommandMessage(found)}, nil
}

func instruction(req interface {
	GetKind() devicev1.CommandKind
	GetDurationSeconds() int32
	GetCreativeId() string
	GetLifetimeSeconds() int32
}) device.Instruction {
	return device.Instruction{
		Kind:       device.CommandKind(strings.TrimPrefix(req.GetKind().String(), "COMMAND_KIND_")),
		Duration:   time.Duration(req.GetDurationSeconds()) * time.Second,
		CreativeID: req.GetCreativeId(),
		Lifetime:   time.Duration(req.GetLifetimeSeconds()) * time.Second,
	}
}

func kindMessage(k device.CommandKind) devicev1.CommandKind {
	return devicev1.CommandKind(devicev1.CommandKind_value["COMMAND_KIND_"+string(k)])
}

func commandStateMessage(s device.CommandState) devicev1.CommandState {
	return devicev1.CommandState(devicev1.CommandState_value["COMMAND_STATE_"+string(s)])
}

func commandMessage(c device.Command) *devicev1.Command {
	return &devicev1.Command{
		CommandId: c.ID, DeviceId: c.DeviceID, GroupId: c.GroupID, GroupCommandId: c.GroupCommandID,
		Kind: kindMessage(c.Kind), DurationSeconds: int32(c.Duration / time.Second), CreativeId: c.CreativeID, PlaylistVersion: c.PlaylistVersion,
		State: commandStateMessage(c.State), Detail: c.Detail, Image: c.Image, ImageMediaType: device.ImageType(c.Image),
		CreateTime: timestamppb.New(c.CreateTime), ExpireTime: timestamppb.New(c.ExpireTime), SendTime: moment(c.SendTime), ReplyTime: moment(c.ReplyTime),
	}
}

func groupCommandMessage(g device.GroupCommand) *devicev1.GroupCommand {
	m := &devicev1.GroupCommand{
		GroupCommandId: g.ID, GroupId: g.GroupID, Kind: kindMessage(g.Kind), DurationSeconds: int32(g.Duration / time.Second), CreativeId: g.CreativeID,
		CreateTime: timestamppb.New(g.CreateTime), ExpireTime: timestamppb.New(g.ExpireTime), DeviceCount: int32(g.Devices),
	}
	for _, state := range []device.CommandState{device.Queued, device.Sent, device.Done, device.Declined, device.Failed, device.Expired} {
		if n := g.States[state]; n > 0 {
			m.Counts = append(m.Counts, &devicev1.CommandCount{State: commandStateMessage(state), Count: int32(n)})
		}
	}
	return m
}
