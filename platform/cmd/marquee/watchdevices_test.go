package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

// displays is a device service whose watches go as a test says, one after the other.
type displays struct {
	devicev1.UnimplementedDeviceServiceServer
	accountv1.UnimplementedOrganisationServiceServer
	organisations []string

	mu      sync.Mutex
	watches []func(token string, send func(...*devicev1.WatchDevicesResponse)) error
}

func (d *displays) WatchDevices(req *devicev1.WatchDevicesRequest, stream grpc.ServerStreamingServer[devicev1.WatchDevicesResponse]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	d.mu.Lock()
	watch := d.watches[0]
	d.watches = d.watches[1:]
	d.mu.Unlock()
	if req.GetOrganisationId() != d.organisations[0] {
		return status.Error(codes.InvalidArgument, "another organisation")
	}
	return watch(strings.Join(md.Get("authorization"), ","), func(events ...*devicev1.WatchDevicesResponse) {
		for _, e := range events {
			_ = stream.Send(e)
		}
	})
}

func (d *displays) ListOrganisations(context.Context, *accountv1.ListOrganisationsRequest) (*accountv1.ListOrganisationsResponse, error) {
	answer := &accountv1.ListOrganisationsResponse{}
	for _, id := range d.organisations {
		answer.Memberships = append(answer.Memberships, &accountv1.Membership{Organisation: &accountv1.Organisation{OrganisationId: id, Name: "of " + id}})
	}
	return answer, nil
}

func (d *displays) serve(t *testing.T) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	devicev1.RegisterDeviceServiceServer(server, d)
	accountv1.RegisterOrganisationServiceServer(server, d)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

func display(id, name string, online bool, playlist int64) *devicev1.WatchDevicesResponse {
	return &devicev1.WatchDevicesResponse{Event: &devicev1.WatchDevicesResponse_Status{Status: &devicev1.DeviceStatus{
		DeviceId: id, Name: name, State: devicev1.DeviceState_DEVICE_STATE_CLAIMED, PlaylistVersion: playlist, Revision: 1,
		Presence: &devicev1.Presence{Online: online, SinceTime: timestamppb.New(time.Now().Truncate(time.Hour))},
	}}}
}

func played(id string, counted bool) *devicev1.WatchDevicesResponse {
	return &devicev1.WatchDevicesResponse{Event: &devicev1.WatchDevicesResponse_Plays{Plays: &devicev1.StoredPlays{Plays: []*devicev1.StoredPlay{{
		DeviceId: id, CreativeId: "spring-sale", StartTime: timestamppb.New(time.Now().Truncate(time.Hour)), DurationMs: 9000, Counted: counted,
	}}}}}
}

func complete() *devicev1.WatchDevicesResponse {
	return &devicev1.WatchDevicesResponse{Event: &devicev1.WatchDevicesResponse_SnapshotComplete{SnapshotComplete: &devicev1.SnapshotComplete{}}}
}

// TestWatchDevices follows displays through a lost instance and a token that
// expires, and ends with what does not pass.
func TestWatchDevices(t *testing.T) {
	d := &displays{organisations: []string{"org_1"}}
	d.watches = []func(string, func(...*devicev1.WatchDevicesResponse)) error{
		func(token string, send func(...*devicev1.WatchDevicesResponse)) error {
			require.Equal(t, "Bearer token-1", token)
			send(display("dev_1", "Gate 1", false, 1), display("dev_2", "Gate 2", true, 1), complete())
			send(display("dev_1", "Gate 1", true, 1), display("dev_1", "Gate 1", true, 2), display("dev_1", "Gate 1", true, 2), played("dev_1", true), played("dev_1", false))
			return status.Error(codes.Unavailable, "the instance died")
		},
		func(token string, send func(...*devicev1.WatchDevicesResponse)) error {
			require.Equal(t, "Bearer token-1", token)
			return status.Error(codes.Unauthenticated, "the token expired")
		},
		func(token string, send func(...*devicev1.WatchDevicesResponse)) error {
			require.Equal(t, "Bearer token-2", token)
			send(display("dev_1", "Gate 1", true, 2), complete(), played("dev_1", true))
			return status.Error(codes.PermissionDenied, "another role is needed")
		},
	}
	var logIns int
	w := &deviceWatch{conn: d.serve(t), logIn: func(context.Context) (string, error) {
		logIns++
		return fmt.Sprint("token-", logIns), nil
	}}
	var stdout, stderr bytes.Buffer
	err := w.run(t.Context(), &stdout, &stderr)
	require.Equal(t, codes.PermissionDenied, status.Code(err), "%v", err)
	require.Equal(t, "watching again: the instance died (Unavailable)\n", stderr.String())
	hour := time.Now().Truncate(time.Hour).Format(time.TimeOnly)
	require.Equal(t, []string{
		"dev_1  Gate 1  claimed, offline since " + hour + ", playlist 1",
		"dev_2  Gate 2  claimed, online since " + hour + ", playlist 1",
		"2 devices, 1 online",
		"dev_1  Gate 1  online since " + hour,
		"dev_1  Gate 1  playlist 2",
		"dev_1  Gate 1  played spring-sale at " + hour + " for 9s",
		"dev_1  Gate 1  played spring-sale at " + hour + " for 9s, not counted",
		"dev_2  Gate 2  deleted",
		"1 devices, 1 online",
		"dev_1  Gate 1  played spring-sale at " + hour + " for 9s",
		"",
	}, strings.Split(regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d  `).ReplaceAllString(stdout.String(), ""), "\n"))
	require.Equal(t, [2]int{3, 2}, [2]int{w.table.devices["dev_1"].plays, w.table.devices["dev_1"].counted}, "plays are counted on")
}

// TestWatchDevicesEnds ends one by Ctrl-C, and others that cannot begin.
func TestWatchDevicesEnds(t *testing.T) {
	t.Run("Interrupt", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		d := &displays{organisations: []string{"org_1"}, watches: []func(string, func(...*devicev1.WatchDevicesResponse)) error{
			func(_ string, send func(...*devicev1.WatchDevicesResponse)) error {
				send(complete())
				cancel()
				<-t.Context().Done()
				return nil
			},
		}}
		var stdout, stderr bytes.Buffer
		require.NoError(t, (&deviceWatch{conn: d.serve(t), token: "x"}).run(ctx, &stdout, &stderr))
		require.Empty(t, stderr.String())
	})
	for name, c := range map[string]struct {
		organisations []string
		code          codes.Code
		want          string
	}{
		"ErrNone":    {nil, codes.FailedPrecondition, "in no organisation"},
		"ErrSeveral": {[]string{"org_1", "org_2"}, codes.FailedPrecondition, "--organisation: org_1 (of org_1), org_2 (of org_2)"},
		"ErrToken":   {[]string{"org_1"}, codes.Unauthenticated, "no good"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &displays{organisations: c.organisations, watches: []func(string, func(...*devicev1.WatchDevicesResponse)) error{
				func(string, func(...*devicev1.WatchDevicesResponse)) error {
					return status.Error(codes.Unauthenticated, "no good")
				},
			}}
			var stdout, stderr bytes.Buffer
			err := (&deviceWatch{conn: d.serve(t), token: "x"}).run(t.Context(), &stdout, &stderr)
			require.Equal(t, c.code, status.Code(err))
			require.ErrorContains(t, err, c.want)
		})
	}
}

// TestDeviceTable draws more devices than fit.
func TestDeviceTable(t *testing.T) {
	table := newDeviceTable()
	table.begin()
	require.Contains(t, table.rows(time.Now(), 80, 10)[0], "reading which devices there are")
	for n := range 20 {
		table.apply(display(fmt.Sprintf("dev_%02d", n), fmt.Sprintf("Gate %02d %s", n, strings.Repeat("x", n*3)), n%2 == 0, int64(n)))
	}
	table.apply(complete())
	table.apply(played("dev_00", true))
	lines := table.rows(time.Now(), 60, 10)
	require.Len(t, lines, 10)
	require.Contains(t, lines[0], "20 devices, 10 online")
	require.Equal(t, "and 14 more", lines[9])
	for _, line := range lines {
		require.LessOrEqual(t, len([]rune(line)), 60)
	}
	wide := table.rows(time.Now(), 200, 100)
	require.Len(t, wide, 3+20)
	require.Regexp(t, `^Gate 00 +dev_00 +\d\d:00:00 +0 +1 +1 +spring-sale at \d\d:00:00 for 9s$`, wide[3])
	require.Regexp(t, `^Gate 01 xxx +dev_01 +off \d\d:00:00 +1 +0 +0 +-$`, wide[4])
	table.trouble = "the gateway died (Unavailable)"
	require.Contains(t, table.rows(time.Now(), 200, 100)[0], "no news: the gateway died (Unavailable)")
}
