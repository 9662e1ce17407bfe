// Package devices asks the device service what was played and what displays know, and
// tells it what is booked.
package devices

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/server"
)

// ServiceConfig is what connections to the device service are made with: all instances
// in turn, and what may be repeated again elsewhere when one cannot answer.
const ServiceConfig = "{" + mesh.RoundRobinConfig + `, "methodConfig": [{
  "name": [
    {"service": "marquee.device.v1.DeviceService", "method": "SearchDevices"},
    {"service": "marquee.device.v1.DeviceService", "method": "SumPlays"},
    {"service": "marquee.device.v1.DeviceService", "method": "ListBookedLines"},
    {"service": "marquee.device.v1.DeviceService", "method": "PutBookedLines"}
  ],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "0.5s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}
}]}`

const (
	// callTimeout bounds one call, repeats included: a caller of ours has 15 s.
	callTimeout = 5 * time.Second
	// sumLines is how many lines one call asks for, and sumLinesByDay with a sum for
	// each of up to 367 days: an answer stays below the 4 MiB that a client takes.
	sumLines      = 200
	sumLinesByDay = 50
	linesPage     = 1000
)

// Client implements order.Plays and order.Playlists.
type Client struct {
	device devicev1.DeviceServiceClient
}

// New asks over a connection to the device service, one with ServiceConfig.
func New(conn grpc.ClientConnInterface) *Client {
	return &Client{device: devicev1.NewDeviceServiceClient(conn)}
}

// Sum implements order.Plays.
func (c *Client) Sum(ctx context.Context, lines []order.LinePeriod, byDay bool) ([]order.LinePlays, error) {
	most := sumLines
	if byDay {
		most = sumLinesByDay
	}
	var sums []order.LinePlays
	for len(lines) > 0 {
		some := lines[:min(most, len(lines))]
		lines = lines[len(some):]
		answer, err := call(ctx, order.ErrPlaysUnavailable, c.device.SumPlays, &devicev1.SumPlaysRequest{ByDay: byDay, Lines: service.Messages(some, func(p order.LinePeriod) *devicev1.LinePeriod {
			return &devicev1.LinePeriod{DeviceId: p.DeviceID, LineId: p.LineID, FromTime: timestamppb.New(p.From), ToTime: timestamppb.New(p.To)}
		})})
		if err != nil {
			return nil, err
		}
		for _, sum := range answer.GetSums() {
			sums = append(sums, order.LinePlays{
				LineID: sum.GetLineId(), Day: sum.GetDay(), Plays: sum.GetPlays(), Counted: sum.GetCountedPlays(),
				Duration: time.Duration(sum.GetDurationMs()) * time.Millisecond,
			})
		}
	}
	return sums, nil
}

// Lines implements order.Playlists.
func (c *Client) Lines(ctx context.Context, deviceIDs []string, token string) ([]order.BookedLine, string, error) {
	answer, err := call(ctx, order.ErrPlaylistsUnavailable, c.device.ListBookedLines, &devicev1.ListBookedLinesRequest{
		DeviceIds: deviceIDs, PageSize: linesPage, PageToken: token,
	})
	if err != nil {
		return nil, "", err
	}
	lines := make([]order.BookedLine, len(answer.GetLines()))
	for i, message := range answer.GetLines() {
		if lines[i], err = bookedLine(message); err != nil {
			return nil, "", fmt.Errorf("reading what the device service knows of %s: %w", message.GetLineId(), err)
		}
	}
	return lines, answer.GetNextPageToken(), nil
}

// Put implements order.Playlists.
func (c *Client) Put(ctx context.Context, deviceID string, lines []order.BookedLine) (int, error) {
	answer, err := call(ctx, order.ErrPlaylistsUnavailable, c.device.PutBookedLines, &devicev1.PutBookedLinesRequest{
		DeviceId: deviceID, Lines: service.Messages(lines, server.BookedLineMessage),
	})
	if errors.Is(err, order.ErrNoDevice) {
		return 0, order.ErrNoDevice.Because(err)
	}
	if err != nil {
		return 0, err
	}
	return int(answer.GetChanged()), nil
}

// call asks within its time. What trying later can help is unavailable.
func call[Q, A any](ctx context.Context, unavailable *fault.Error, method func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (answer A, err error) {
	within, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if answer, err = method(within, request); err == nil {
		return answer, nil
	}
	if ctx.Err() != nil {
		return answer, fmt.Errorf("asking the device service: %w", context.Cause(ctx))
	}
	switch st := status.Convert(err); st.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		return answer, unavailable.Because(err)
	default:
		return answer, fmt.Errorf("asking the device service: %w", errors.Join(err, grpcfault.FromStatus(st)))
	}
}

func bookedLine(m *orderv1.BookedLine) (order.BookedLine, error) {
	first, err := airtime.ParseDate(m.GetFlight().GetStartDate())
	if err != nil {
		return order.BookedLine{}, err
	}
	last, err := airtime.ParseDate(m.GetFlight().GetEndDate())
	if err != nil {
		return order.BookedLine{}, err
	}
	line := order.BookedLine{
		LineID: m.GetLineId(), DeviceID: m.GetDeviceId(), Revision: m.GetRevision(), Flight: airtime.Flight{First: first, Last: last},
		Start: m.GetStartTime().AsTime(), End: m.GetEndTime().AsTime(), Removed: m.GetRemoved(), TakenDown: m.GetTakenDown(),
	}
	for _, d := range m.GetDayparts() {
		line.Dayparts = append(line.Dayparts, airtime.Opening{Weekday: int(d.GetWeekday()), Open: int(d.GetStartMinute()), Close: int(d.GetEndMinute())})
	}
	for _, slot := range m.GetSlots() {
		line.Slots = append(line.Slots, int(slot))
	}
	if o := m.GetShowing(); o != nil {
		line.Showing = &order.Showing{
			ID: o.GetShowingId(), URL: o.GetUrl(), SHA256: o.GetSha256(), MediaType: o.GetMediaType(), Duration: time.Duration(o.GetDurationMs()) * time.Millisecond,
		}
	}
	return line, nil
}
