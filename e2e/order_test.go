package e2e

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/mesh"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

// searchAgain is what the service that sells air time has its client do: all
// instances in turn, and again elsewhere when one cannot answer, as SearchDevices
// says that it may.
const searchAgain = "{" + mesh.RoundRobinConfig + `, "methodConfig": [{
  "name": [{"service": "marquee.device.v1.DeviceService", "method": "SearchDevices"}],
  "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.02s", "maxBackoff": "0.2s", "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}
}]}`

// Another service asks device, through the mesh and as itself, for the displays of
// all organisations; an instance of device dies meanwhile and comes back, and no
// call fails. Nobody else may ask that.
func TestOrder(t *testing.T) {
	ctx := beginBeside(t, 2*time.Minute)
	o, rival := newOwner(t, ctx), newOwner(t, ctx)
	mine, other := o.createDevice(t, ctx, "device-"+ulid.Make().String()), rival.createDevice(t, ctx, "device-"+ulid.Make().String())
	dial := func(service string, options ...grpc.DialOption) devicev1.DeviceServiceClient {
		conn, err := as(t, service).NewClient("device", options...)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return devicev1.NewDeviceServiceClient(conn)
	}
	order := dial("order", grpc.WithDefaultServiceConfig(searchAgain))
	both := &devicev1.SearchDevicesRequest{DeviceIds: []string{mine, other}, PageSize: 1000}

	found, err := order.SearchDevices(ctx, both, grpc.WaitForReady(true))
	require.NoError(t, err)
	require.Len(t, found.GetDevices(), 2)
	owners := map[string]string{}
	for _, d := range found.GetDevices() {
		owners[d.GetDeviceId()] = d.GetOrganisationId()
		require.EqualValues(t, 1, d.GetSettings().GetSlotPrice().GetAmountMinor())
		require.Equal(t, "EUR", d.GetSettings().GetSlotPrice().GetCurrency())
		require.EqualValues(t, 10, d.GetSettings().GetSlotLengthSeconds())
		require.EqualValues(t, 60, d.GetSettings().GetLoopLengthSeconds())
		require.Equal(t, "Europe/Berlin", d.GetSettings().GetTimeZone())
	}
	require.Equal(t, map[string]string{mine: o.organisation, other: rival.organisation}, owners)

	t.Run("NobodyElse", func(t *testing.T) {
		refused := func(err error, code codes.Code, reason string) {
			t.Helper()
			require.Equal(t, [2]string{code.String(), reason}, [2]string{status.Code(err).String(), grpcfault.FromStatus(status.Convert(err)).Reason}, "%v", err)
		}
		// It has no token, and what needs one does not become its own.
		_, err := order.GetDevice(ctx, &devicev1.GetDeviceRequest{OrganisationId: o.organisation, DeviceId: mine})
		refused(err, codes.Unauthenticated, "TOKEN_MISSING")
		_, err = dial("gateway").SearchDevices(ctx, both, grpc.WaitForReady(true))
		refused(err, codes.PermissionDenied, "SERVICE_NOT_ALLOWED")
		_, err = dial("gateway").PutBookedLines(ctx, &devicev1.PutBookedLinesRequest{DeviceId: mine}, grpc.WaitForReady(true))
		refused(err, codes.PermissionDenied, "SERVICE_NOT_ALLOWED")
		_, err = dial("echo").SearchDevices(ctx, both, grpc.WaitForReady(true))
		refused(err, codes.PermissionDenied, "MESH_DENIED")
		_, err = devicev1.NewDeviceServiceClient(o.doors.GRPC).SearchDevices(withToken(ctx, o.token), both)
		require.Equal(t, codes.Unimplemented, status.Code(err), "%v", err)
	})

	running := load.Start(ctx, load.Plan{Rate: 150, Timeout: 5 * time.Second, Ops: []load.Op{
		load.GRPC("SearchDevices", func(ctx context.Context, options ...grpc.CallOption) error {
			found, err := order.SearchDevices(ctx, both, options...)
			if err == nil && len(found.GetDevices()) != 2 {
				err = status.Errorf(codes.DataLoss, "%d devices were found", len(found.GetDevices()))
			}
			return err
		}),
	}})
	scenario.AtLeast(ctx, t, running, 200)
	requireEven(t, ctx, running, 2)
	dead := kill(t, "deviced", 1)
	excluded, restored := recovery(t, ctx, "device", "deviced", 2, dead)
	serving := restored + requireEven(t, ctx, running, 2)
	report := running.Stop()
	t.Log(report)
	t.Logf("killed 1 of 2 of device; excluded by Consul %s; both healthy again after %.1f s, both serving after %.1f s", excluded, restored.Seconds(), serving.Seconds())
	require.Empty(t, report.Failed, "no call may fail")

	o.do(t, ctx, http.MethodDelete, o.on("/"+mine), nil, nil)
	found, err = order.SearchDevices(ctx, both)
	require.NoError(t, err)
	require.Len(t, found.GetDevices(), 1, "what was deleted is still sold")
}
