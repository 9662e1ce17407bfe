package devices_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/devices"
)

// answering is a connection on which calls of SearchDevices get an answer.
type answering func(*devicev1.SearchDevicesRequest) (*devicev1.SearchDevicesResponse, error)

func (a answering) Invoke(ctx context.Context, method string, request, response any, _ ...grpc.CallOption) error {
	if _, bounded := ctx.Deadline(); method != devicev1.DeviceService_SearchDevices_FullMethodName || !bounded {
		return status.Error(codes.Internal, "another method, or a call without an end")
	}
	answer, err := a(request.(*devicev1.SearchDevicesRequest))
	if err == nil {
		proto.Merge(response.(proto.Message), answer)
	}
	return err
}

func (answering) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

func TestListDisplays(t *testing.T) {
	device := func(id string, slotLength int32) *devicev1.Device {
		return &devicev1.Device{
			DeviceId: id, State: devicev1.DeviceState_DEVICE_STATE_CLAIMED,
			Settings: &devicev1.DeviceSettings{LoopLengthSeconds: 60, SlotLengthSeconds: slotLength},
		}
	}
	client := devices.New(answering(func(r *devicev1.SearchDevicesRequest) (*devicev1.SearchDevicesResponse, error) {
		switch r.GetPageToken() {
		case "":
			return &devicev1.SearchDevicesResponse{Devices: []*devicev1.Device{device("dev_3", 10), device("dev_2", 7), device("dev_1", 20)}, NextPageToken: "next"}, nil
		case "next":
			return &devicev1.SearchDevicesResponse{}, nil
		case "away":
			return nil, status.Error(codes.Unavailable, "away")
		default:
			return nil, status.Error(codes.PermissionDenied, "no")
		}
	}))
	found, next, err := client.ListDisplays(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, "next", next)
	require.Len(t, found, 2, "a loop of no whole slots cannot be sold")
	require.Equal(t, [2]string{"dev_3", "dev_1"}, [2]string{found[0].DeviceID, found[1].DeviceID})
	require.Equal(t, 3, found[1].Slots())
	require.True(t, found[1].Playable)
	found, next, err = client.ListDisplays(t.Context(), next)
	require.NoError(t, err)
	require.Empty(t, found)
	require.Empty(t, next)
	_, _, err = client.ListDisplays(t.Context(), "away")
	require.ErrorIs(t, err, order.ErrDevicesUnavailable)
	_, _, err = client.ListDisplays(t.Context(), "refused")
	require.Error(t, err)
	require.NotErrorIs(t, err, order.ErrDevicesUnavailable)
}
