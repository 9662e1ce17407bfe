package server

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/device"
)

// WatchDevices tells how devices are, and what happens to them.
func (s *Server) WatchDevices(req *devicev1.WatchDevicesRequest, stream grpc.ServerStreamingServer[devicev1.WatchDevicesResponse]) error {
	ctx := stream.Context()
	return s.watches.Watch(ctx, req.GetOrganisationId(), req.GetDeviceIds(), func(e device.Event) error {
		return stream.Send(eventMessage(e))
	}, func(why error) {
		// A reader that reads nothing holds Send up; this ends it.
		grpcfault.WriteStatus(ctx, grpcfault.ToStatus(why, service.RequestID(ctx)))
	})
}

func eventMessage(e device.Event) *devicev1.WatchDevicesResponse {
	switch {
	case e.Complete:
		return &devicev1.WatchDevicesResponse{Event: &devicev1.WatchDevicesResponse_SnapshotComplete{SnapshotComplete: &devicev1.SnapshotComplete{}}}
	case e.Status == nil:
		return &devicev1.WatchDevicesResponse{Event: &devicev1.WatchDevicesResponse_Plays{Plays: &devicev1.StoredPlays{
			Plays: service.Messages(e.Plays, playMessage),
		}}}
	case e.Status.Deleted:
		return &devicev1.WatchDevicesResponse{Event: &devicev1.WatchDevicesResponse_DeletedDeviceId{DeletedDeviceId: e.Status.DeviceID}}
	default:
		d := e.Status
		return &devicev1.WatchDevicesResponse{Event: &devicev1.WatchDevicesResponse_Status{Status: &devicev1.DeviceStatus{
			DeviceId: d.DeviceID, Name: d.Name, State: stateMessage(d.State),
			Presence:        &devicev1.Presence{Online: d.Presence.Online, SinceTime: moment(d.Presence.Since)},
			PlaylistVersion: d.PlaylistVersion, Revision: d.Revision,
		}}}
	}
}

func playMessage(p device.Play) *devicev1.StoredPlay {
	return &devicev1.StoredPlay{
		DeviceId: p.DeviceID, PlayId: p.ID, CreativeId: p.CreativeID, StartTime: timestamppb.New(p.Start),
		DurationMs: p.Duration.Milliseconds(), Counted: p.Counted,
	}
}
