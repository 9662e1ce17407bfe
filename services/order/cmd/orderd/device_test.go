package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// device stands in for the device service: a gRPC server that knows what tests tell
// it, and refuses what the real one's API does.
type device struct {
	devicev1.UnimplementedDeviceServiceServer
	address string

	mu      sync.Mutex
	devices []*devicev1.Device
	plays   map[string][]*devicev1.LinePlays // by lines, of days in order
	lines   map[string]*orderv1.BookedLine   // by lines
	away    error                            // what calls about plays and lines fail with
	refuses string                           // a line whose plays it cannot sum
	sums    int                              // how often plays were asked for
	page    int                              // how many lines a page has at most
}

func startDevice(t *testing.T) *device {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d := &device{address: listener.Addr().String(), plays: map[string][]*devicev1.LinePlays{}, lines: map[string]*orderv1.BookedLine{}, page: 2}
	server := grpc.NewServer()
	devicev1.RegisterDeviceServiceServer(server, d)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; !errors.Is(err, grpc.ErrServerStopped) {
			require.NoError(t, err)
		}
	})
	return d
}

// add makes a device whose slot costs so much more than 1, and returns its id.
func (d *device) add(price int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := timestamppb.Now()
	id := "dev_" + ulid.Make().String()
	d.devices = append(d.devices, &devicev1.Device{
		DeviceId: id, OrganisationId: owner, State: devicev1.DeviceState_DEVICE_STATE_CLAIMED, Revision: 1,
		CreateTime: now, UpdateTime: now, ClaimTime: now, Settings: &devicev1.DeviceSettings{
			Name: "Gate " + strconv.Itoa(len(d.devices)), Place: &devicev1.Place{Latitude: 48.35, Longitude: 11.79, Address: "Terminal 2"},
			VenueType: "transit.airports.gates", Screen: &devicev1.Screen{WidthPx: 1080, HeightPx: 1920}, LoopLengthSeconds: 60, SlotLengthSeconds: 10,
			SlotPrice: &devicev1.Price{AmountMinor: int64(1 + price), Currency: "EUR"}, TimeZone: "UTC",
		},
	})
	return id
}

// played makes a line have been played so often on a day.
func (d *device) played(lineID, day string, plays, counted int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plays[lineID] = append(d.plays[lineID], &devicev1.LinePlays{LineId: lineID, Day: day, Plays: plays, CountedPlays: counted, DurationMs: plays * 9950})
}

// fail makes calls about plays and lines fail; nil ends that.
func (d *device) fail(err *fault.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away = nil
	if err != nil {
		d.away = grpcfault.ToStatus(err, "").Err()
	}
}

func (d *device) SearchDevices(context.Context, *devicev1.SearchDevicesRequest) (*devicev1.SearchDevicesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := slices.Clone(d.devices)
	slices.SortFunc(found, func(a, b *devicev1.Device) int { return cmp.Compare(b.GetDeviceId(), a.GetDeviceId()) })
	return &devicev1.SearchDevicesResponse{Devices: found}, nil
}

func (d *device) SumPlays(_ context.Context, req *devicev1.SumPlaysRequest) (*devicev1.SumPlaysResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sums++
	if d.away != nil {
		return nil, d.away
	}
	if n := len(req.GetLines()); n == 0 || n > 200 {
		return nil, fmt.Errorf("it asks for %d lines", n)
	}
	answer := &devicev1.SumPlaysResponse{}
	for _, l := range req.GetLines() {
		if l.GetLineId() == d.refuses {
			return nil, status.Error(codes.InvalidArgument, "this line is not possible")
		}
		total := &devicev1.LinePlays{LineId: l.GetLineId()}
		for _, sum := range d.plays[l.GetLineId()] {
			day, err := time.Parse(time.DateOnly, sum.GetDay())
			if err != nil {
				return nil, err
			}
			if !day.Before(l.GetToTime().AsTime()) || !day.Add(24*time.Hour).After(l.GetFromTime().AsTime()) {
				continue
			}
			if req.GetByDay() {
				answer.Sums = append(answer.Sums, sum)
			}
			total.Plays += sum.GetPlays()
			total.CountedPlays += sum.GetCountedPlays()
			total.DurationMs += sum.GetDurationMs()
		}
		if !req.GetByDay() && total.GetPlays() > 0 {
			answer.Sums = append(answer.Sums, total)
		}
	}
	return answer, nil
}

func (d *device) ListBookedLines(_ context.Context, req *devicev1.ListBookedLinesRequest) (*devicev1.ListBookedLinesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away != nil {
		return nil, d.away
	}
	place := func(l *orderv1.BookedLine) string { return l.GetDeviceId() + l.GetLineId() }
	var found []*orderv1.BookedLine
	for _, l := range d.lines {
		if (len(req.GetDeviceIds()) == 0 || slices.Contains(req.GetDeviceIds(), l.GetDeviceId())) && place(l) > req.GetPageToken() {
			found = append(found, l)
		}
	}
	slices.SortFunc(found, func(a, b *orderv1.BookedLine) int { return cmp.Compare(place(a), place(b)) })
	if len(found) <= d.page {
		return &devicev1.ListBookedLinesResponse{Lines: found}, nil
	}
	return &devicev1.ListBookedLinesResponse{Lines: found[:d.page], NextPageToken: place(found[d.page-1])}, nil
}

func (d *device) PutBookedLines(_ context.Context, req *devicev1.PutBookedLinesRequest) (*devicev1.PutBookedLinesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away != nil {
		return nil, d.away
	}
	if !slices.ContainsFunc(d.devices, func(known *devicev1.Device) bool { return known.GetDeviceId() == req.GetDeviceId() }) {
		return nil, grpcfault.ToStatus(fault.New(fault.NotFound, "DEVICE_NOT_FOUND", "there is no such device"), "").Err()
	}
	wanted := map[string]*orderv1.BookedLine{}
	for _, l := range req.GetLines() {
		wanted[l.GetLineId()] = l
	}
	answer := &devicev1.PutBookedLinesResponse{}
	for id, l := range d.lines {
		if l.GetDeviceId() == req.GetDeviceId() && wanted[id] == nil {
			delete(d.lines, id)
			answer.Changed++
		}
	}
	for id, l := range wanted {
		if d.lines[id].GetRevision() <= l.GetRevision() && !proto.Equal(d.lines[id], l) {
			d.lines[id] = l
			answer.Changed++
		}
	}
	return answer, nil
}
