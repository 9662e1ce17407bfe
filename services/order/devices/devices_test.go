package devices_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/airtime"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/devices"
)

// device answers SumPlays with one play of each line, and knows the lines that it was
// told last.
type device struct {
	devicev1.UnimplementedDeviceServiceServer

	mu    sync.Mutex
	fails []error // what the next calls fail with
	sizes []int   // how many lines were asked for
	lines []*orderv1.BookedLine
}

func (d *device) next() error {
	if len(d.fails) == 0 {
		return nil
	}
	err := d.fails[0]
	d.fails = d.fails[1:]
	return err
}

func (d *device) SumPlays(_ context.Context, req *devicev1.SumPlaysRequest) (*devicev1.SumPlaysResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.next(); err != nil {
		return nil, err
	}
	d.sizes = append(d.sizes, len(req.GetLines()))
	answer := &devicev1.SumPlaysResponse{}
	for _, l := range req.GetLines() {
		answer.Sums = append(answer.Sums, &devicev1.LinePlays{LineId: l.GetLineId(), Plays: 1, CountedPlays: 1, DurationMs: 1500})
	}
	return answer, nil
}

func (d *device) PutBookedLines(_ context.Context, req *devicev1.PutBookedLinesRequest) (*devicev1.PutBookedLinesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = req.GetLines()
	return &devicev1.PutBookedLinesResponse{Changed: int32(len(d.lines))}, d.next()
}

func (d *device) ListBookedLines(context.Context, *devicev1.ListBookedLinesRequest) (*devicev1.ListBookedLinesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &devicev1.ListBookedLinesResponse{Lines: d.lines}, d.next()
}

func start(t *testing.T) (*device, *devices.Client) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d, server := &device{}, grpc.NewServer()
	devicev1.RegisterDeviceServiceServer(server, d)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(devices.ServiceConfig))
	require.NoError(t, err)
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-ended; !errors.Is(err, grpc.ErrServerStopped) {
			require.NoError(t, err)
		}
	})
	return d, devices.New(conn)
}

func TestSum(t *testing.T) {
	var lines []order.LinePeriod
	for n := range 450 {
		lines = append(lines, order.LinePeriod{DeviceID: "dev_1", LineID: fmt.Sprintf("lin_%d", n), From: time.Unix(0, 0), To: time.Unix(3600, 0)})
	}
	d, client := start(t)
	for byDay, want := range map[bool][]int{false: {200, 200, 50}, true: {50, 50, 50, 50, 50, 50, 50, 50, 50}} {
		d.sizes = nil
		sums, err := client.Sum(t.Context(), lines, byDay)
		require.NoError(t, err)
		require.Equal(t, want, d.sizes)
		require.Len(t, sums, len(lines))
		require.Equal(t, order.LinePlays{LineID: "lin_449", Plays: 1, Counted: 1, Duration: 1500 * time.Millisecond}, sums[449])
	}
	away := status.Error(codes.Unavailable, "away")

	t.Run("Again", func(t *testing.T) {
		d.fails = []error{away, away}
		_, err := client.Sum(t.Context(), lines[:1], false)
		require.NoError(t, err)
		require.Empty(t, d.fails)
	})

	t.Run("ErrPlaysUnavailable", func(t *testing.T) {
		for _, err := range []error{away, status.Error(codes.DeadlineExceeded, "late"), status.Error(codes.ResourceExhausted, "busy")} {
			d.fails = []error{err, err, err, err}
			_, err := client.Sum(t.Context(), lines[:1], false)
			require.ErrorIs(t, err, order.ErrPlaysUnavailable)
		}
		d.fails = []error{status.Error(codes.InvalidArgument, "wrong")}
		_, err := client.Sum(t.Context(), lines[:1], false)
		require.Error(t, err)
		require.NotErrorIs(t, err, order.ErrPlaysUnavailable)
		d.fails = nil
	})

	t.Run("Ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := client.Sum(ctx, lines[:1], false)
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, order.ErrPlaysUnavailable)
	})
}

// What is put is what is listed.
func TestLines(t *testing.T) {
	d, client := start(t)
	start := time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC)
	want := []order.BookedLine{{
		LineID: "lin_1", DeviceID: "dev_1", Revision: 7,
		Flight:   airtime.Flight{First: airtime.Date{Year: 2026, Month: 12, Day: 1}, Last: airtime.Date{Year: 2027, Month: 1, Day: 31}},
		Dayparts: []airtime.Opening{{Weekday: 1, Open: 60, Close: 1440}, {Weekday: 7, Open: 0, Close: 1}}, Slots: []int{0, 5, 3599},
		Start: start, End: start.Add(time.Hour), TakenDown: []string{"lin_1-1"},
		Showing: &order.Showing{ID: "lin_1-2", URL: "/v1/media/ab", SHA256: "ab", MediaType: "image/png", Duration: 10 * time.Second},
	}, {
		LineID: "lin_2", DeviceID: "dev_1", Revision: 1, Slots: []int{1}, Start: start, End: start.Add(time.Hour), Removed: true,
		Flight: airtime.Flight{First: airtime.Date{Year: 2026, Month: 2, Day: 28}, Last: airtime.Date{Year: 2026, Month: 2, Day: 28}},
	}}
	changed, err := client.Put(t.Context(), "dev_1", want)
	require.NoError(t, err)
	require.Equal(t, 2, changed)
	got, token, err := client.Lines(t.Context(), nil, "")
	require.NoError(t, err)
	require.Empty(t, token)
	require.Equal(t, want, got)

	d.lines[0].Flight.StartDate = "tomorrow"
	_, _, err = client.Lines(t.Context(), nil, "")
	require.ErrorContains(t, err, "lin_1")
}
