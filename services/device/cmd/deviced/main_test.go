package main

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/authtest"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

var pg pgtest.Server

// asProgram is the environment variable with which this test binary is deviced.
const asProgram = "DEVICED_TEST_PROGRAM"

// TestMain is also the program that TestCheckPlaysProgram runs.
func TestMain(m *testing.M) {
	if _, ok := os.LookupEnv(asProgram); ok {
		main()
		return
	}
	os.Exit(pg.Main(m))
}

const (
	organisation = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	another      = "org_01BX5ZZKBKACTAV9WEVGEMMVRZ"
)

// world is a database and an account service, for instances that belong together.
type world struct {
	account  *authtest.Account
	url      string   // of the database
	database []string // flags that name it
	nats     string   // address of NATS; nobody is at the one of newWorld
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := pg.Database(t)
	name, _, _ := strings.Cut(strings.TrimPrefix(url, "postgres:///"), "?")
	return &world{account: authtest.Start(t), url: url, nats: "127.0.0.1:1", database: []string{
		"--database-host", pg.SocketDir(t), "--database-name", name, "--database-user=test",
	}}
}

// instance is a running deviced.
type instance struct {
	devicev1.DeviceServiceClient
	*world
	players string // where they connect
	admin   string // where its metrics are
	stop    func()
}

// start runs an instance on free ports until the test ends, or stop.
func (w *world) start(t *testing.T, flags ...string) *instance {
	t.Helper()
	return w.startWith(t, func(*config) {}, flags...)
}

// startWith is start with a change of what flags do not say.
func (w *world) startWith(t *testing.T, change func(*config), flags ...string) *instance {
	t.Helper()
	flags = append(append([]string{"--mesh=plaintext", "--environment=test", "--mode=test", "--drain-delay=0s", "--nats-address=" + w.nats}, w.database...), flags...)
	cfg, err := service.Parse[config]("device", flags, io.Discard)
	require.NoError(t, err)
	cfg.Upstreams = map[string][]string{"account": {w.account.Address()}}
	listening, players := make(chan service.Addresses, 1), make(chan string, 1)
	cfg.OnListening = func(a service.Addresses) { listening <- a }
	cfg.OnMQTT = func(address string) { players <- address }
	change(&cfg)
	log, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	cfg.LogOutput = log

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, cfg) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		require.NoError(t, <-ended)
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the log:\n%s", text)
		}
		log.Close()
	})
	select {
	case a := <-listening:
		conn, err := grpc.NewClient(a.Mesh, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		i := &instance{devicev1.NewDeviceServiceClient(conn), w, <-players, a.Admin, stop}
		i.waitForKeys(t)
		return i
	case err := <-ended:
		ended <- nil
		t.Fatalf("the service ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the service does not listen within 30 s")
	}
	return nil
}

func (i *instance) waitForKeys(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := i.ListDevices(i.owner(t), &devicev1.ListDevicesRequest{OrganisationId: organisation})
		return err == nil
	}, 10*time.Second, 20*time.Millisecond, "the signing keys do not arrive")
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// as is ctx with the token of an account that has a role in an organisation.
func (w *world) as(ctx context.Context, t *testing.T, accountID, organisationID string, role auth.Role) context.Context {
	t.Helper()
	return w.account.ContextWithRoles(ctx, t, "test", accountID, auth.Roles{organisationID: role})
}

func (w *world) owner(t *testing.T) context.Context {
	return w.as(within(t), t, "acc_ada", organisation, auth.Owner)
}

// refused requires that err is a fault with this code and reason.
func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	require.Error(t, err)
	f := grpcfault.FromStatus(status.Convert(err))
	require.Equal(t, [2]string{code.String(), reason}, [2]string{status.Code(err).String(), f.Reason}, "%v", err)
}

func goodSettings() *devicev1.DeviceSettings {
	return &devicev1.DeviceSettings{
		Name: "Gate 7", Place: &devicev1.Place{Latitude: 48.35, Longitude: 11.79, Address: "Terminal 2"}, VenueType: "transit.airports.gates",
		Screen: &devicev1.Screen{WidthPx: 1080, HeightPx: 1920}, LoopLengthSeconds: 60, SlotLengthSeconds: 10,
		SlotPrice: &devicev1.Price{AmountMinor: 250, Currency: "EUR"}, TimeZone: "Europe/Berlin",
		Hours: []*devicev1.OpeningHours{
			{Weekday: devicev1.Weekday_WEEKDAY_MONDAY, OpenMinute: 360, CloseMinute: 1440},
			{Weekday: devicev1.Weekday_WEEKDAY_TUESDAY, OpenMinute: 0, CloseMinute: 60},
		},
	}
}

// create makes a device.
func (i *instance) create(t *testing.T, requestID string) *devicev1.Device {
	t.Helper()
	made, err := i.CreateDevice(i.owner(t), &devicev1.CreateDeviceRequest{OrganisationId: organisation, RequestId: requestID, Settings: goodSettings()})
	require.NoError(t, err)
	return made.GetDevice()
}

// enrol makes a device and claims it.
func (i *instance) enrol(t *testing.T, requestID string) *devicev1.Credentials {
	t.Helper()
	return i.claim(t, i.create(t, requestID).GetDeviceId())
}

func (i *instance) claim(t *testing.T, id string) *devicev1.Credentials {
	t.Helper()
	code, err := i.CreateClaimCode(i.owner(t), &devicev1.CreateClaimCodeRequest{OrganisationId: organisation, DeviceId: id})
	require.NoError(t, err)
	claimed, err := i.ClaimDevice(within(t), &devicev1.ClaimDeviceRequest{ClaimCode: code.GetClaimCode()})
	require.NoError(t, err)
	require.Equal(t, id, claimed.GetCredentials().GetDeviceId())
	return claimed.GetCredentials()
}

func (i *instance) get(t *testing.T, id string) *devicev1.Device {
	t.Helper()
	found, err := i.GetDevice(i.owner(t), &devicev1.GetDeviceRequest{OrganisationId: organisation, DeviceId: id})
	require.NoError(t, err)
	return found.GetDevice()
}

func TestRegistry(t *testing.T) {
	i := newWorld(t).start(t)
	made := i.create(t, "request-1")
	require.Regexp(t, `^dev_[0-7][0-9A-HJKMNP-TV-Z]{25}$`, made.GetDeviceId())
	require.Equal(t, goodSettings().String(), made.GetSettings().String())
	require.Equal(t, devicev1.DeviceState_DEVICE_STATE_UNCLAIMED, made.GetState())
	require.EqualValues(t, 1, made.GetRevision())
	require.False(t, made.GetPresence().GetOnline())
	require.Equal(t, made.String(), i.get(t, made.GetDeviceId()).String())
	require.Equal(t, made.GetDeviceId(), i.create(t, "request-1").GetDeviceId(), "a repeat makes another device")

	t.Run("Roles", func(t *testing.T) {
		ctx := within(t)
		for role, allowed := range map[auth.Role]struct{ read, write bool }{
			auth.Owner: {true, true}, auth.Operator: {true, true}, auth.Viewer: {true, false}, auth.Advertiser: {false, false},
		} {
			as := i.as(ctx, t, "acc_grace", organisation, role)
			_, err := i.GetDevice(as, &devicev1.GetDeviceRequest{OrganisationId: organisation, DeviceId: made.GetDeviceId()})
			require.Equal(t, allowed.read, err == nil, "%s: %v", role, err)
			_, err = i.CreateClaimCode(as, &devicev1.CreateClaimCodeRequest{OrganisationId: organisation, DeviceId: made.GetDeviceId()})
			require.Equal(t, allowed.write, err == nil, "%s: %v", role, err)
		}
		stranger := i.as(ctx, t, "acc_eve", another, auth.Owner)
		_, err := i.GetDevice(stranger, &devicev1.GetDeviceRequest{OrganisationId: organisation, DeviceId: made.GetDeviceId()})
		refused(t, err, codes.PermissionDenied, "NOT_A_MEMBER")
		_, err = i.GetDevice(stranger, &devicev1.GetDeviceRequest{OrganisationId: another, DeviceId: made.GetDeviceId()})
		refused(t, err, codes.NotFound, "DEVICE_NOT_FOUND")
		_, err = i.RevokeDevice(stranger, &devicev1.RevokeDeviceRequest{OrganisationId: another, DeviceId: made.GetDeviceId()})
		refused(t, err, codes.NotFound, "DEVICE_NOT_FOUND")
		_, err = i.GetDevice(ctx, &devicev1.GetDeviceRequest{OrganisationId: organisation, DeviceId: made.GetDeviceId()})
		refused(t, err, codes.Unauthenticated, "TOKEN_MISSING")
	})

	t.Run("Settings", func(t *testing.T) {
		for name, change := range map[string]func(*devicev1.DeviceSettings){
			"ErrVenueType":     func(s *devicev1.DeviceSettings) { s.VenueType = "transit.airports.kitchen" },
			"ErrLoop":          func(s *devicev1.DeviceSettings) { s.LoopLengthSeconds = 61 },
			"ErrCurrency":      func(s *devicev1.DeviceSettings) { s.SlotPrice.Currency = "ZZZ" },
			"ErrCurrencyForm":  func(s *devicev1.DeviceSettings) { s.SlotPrice.Currency = "eur" },
			"ErrTimeZone":      func(s *devicev1.DeviceSettings) { s.TimeZone = "Mars/Olympus" },
			"ErrTimeZoneLocal": func(s *devicev1.DeviceSettings) { s.TimeZone = "Local" },
			"ErrTimeZonePath":  func(s *devicev1.DeviceSettings) { s.TimeZone = "../../etc/passwd" },
			"ErrLatitude":      func(s *devicev1.DeviceSettings) { s.Place.Latitude = 91 },
			"ErrName":          func(s *devicev1.DeviceSettings) { s.Name = "a\x00b" },
			"ErrHoursOverlap": func(s *devicev1.DeviceSettings) {
				s.Hours = append(s.Hours, &devicev1.OpeningHours{Weekday: devicev1.Weekday_WEEKDAY_MONDAY, OpenMinute: 300, CloseMinute: 361})
			},
			"ErrHoursBackwards": func(s *devicev1.DeviceSettings) { s.Hours[0].CloseMinute = 360 },
			"ErrNoScreen":       func(s *devicev1.DeviceSettings) { s.Screen = nil },
		} {
			t.Run(name, func(t *testing.T) {
				s := goodSettings()
				change(s)
				_, err := i.CreateDevice(i.owner(t), &devicev1.CreateDeviceRequest{OrganisationId: organisation, RequestId: "request-x", Settings: s})
				refused(t, err, codes.InvalidArgument, "VALIDATION_FAILED")
				_, err = i.UpdateDevice(i.owner(t), &devicev1.UpdateDeviceRequest{OrganisationId: organisation, DeviceId: made.GetDeviceId(), Settings: s})
				refused(t, err, codes.InvalidArgument, "VALIDATION_FAILED")
			})
		}
	})

	t.Run("Update", func(t *testing.T) {
		s := goodSettings()
		s.Name, s.Hours = "Gate 8", nil
		update := &devicev1.UpdateDeviceRequest{OrganisationId: organisation, DeviceId: made.GetDeviceId(), Settings: s, Revision: 1}
		changed, err := i.UpdateDevice(i.owner(t), update)
		require.NoError(t, err)
		require.EqualValues(t, 2, changed.GetDevice().GetRevision())
		require.Equal(t, s.String(), changed.GetDevice().GetSettings().String())
		again, err := i.UpdateDevice(i.owner(t), update)
		require.NoError(t, err)
		require.Equal(t, changed.String(), again.String(), "a repeat changes something")
		s.Name = "Gate 9"
		_, err = i.UpdateDevice(i.owner(t), update)
		refused(t, err, codes.Aborted, "DEVICE_CHANGED")
	})

	t.Run("ErrRequestIDReused", func(t *testing.T) {
		s := goodSettings()
		s.Name = "another"
		_, err := i.CreateDevice(i.owner(t), &devicev1.CreateDeviceRequest{OrganisationId: organisation, RequestId: "request-1", Settings: s})
		refused(t, err, codes.Aborted, "REQUEST_ID_REUSED")
	})

	t.Run("List", func(t *testing.T) {
		want := []string{made.GetDeviceId()}
		for _, id := range []string{"request-2", "request-3", "request-4", "request-5"} {
			want = append([]string{i.create(t, id).GetDeviceId()}, want...)
		}
		// Those of one millisecond are in any order.
		slices.SortFunc(want, func(a, b string) int { return strings.Compare(b, a) })
		list := func(req *devicev1.ListDevicesRequest) (ids []string) {
			req.OrganisationId = organisation
			for {
				page, err := i.ListDevices(i.owner(t), req)
				require.NoError(t, err)
				for _, d := range page.GetDevices() {
					ids = append(ids, d.GetDeviceId())
				}
				if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
					return ids
				}
			}
		}
		require.Equal(t, want, list(&devicev1.ListDevicesRequest{PageSize: 2}))
		require.Equal(t, want, list(&devicev1.ListDevicesRequest{}))
		require.Equal(t, []string{made.GetDeviceId()}, list(&devicev1.ListDevicesRequest{NameContains: "gATE 8"}))
		require.Equal(t, want, list(&devicev1.ListDevicesRequest{VenueType: "transit"}))
		require.Empty(t, list(&devicev1.ListDevicesRequest{VenueType: "trans"}))
		i.claim(t, want[1])
		require.Equal(t, want[1:2], list(&devicev1.ListDevicesRequest{State: devicev1.DeviceState_DEVICE_STATE_CLAIMED}))
		require.Len(t, list(&devicev1.ListDevicesRequest{State: devicev1.DeviceState_DEVICE_STATE_UNCLAIMED}), 4)
		_, err := i.ListDevices(i.owner(t), &devicev1.ListDevicesRequest{OrganisationId: organisation, PageToken: "?"})
		refused(t, err, codes.InvalidArgument, "PAGE_TOKEN_INVALID")

		for range 2 {
			_, err = i.DeleteDevice(i.owner(t), &devicev1.DeleteDeviceRequest{OrganisationId: organisation, DeviceId: want[0]})
			require.NoError(t, err)
		}
		require.Equal(t, want[1:], list(&devicev1.ListDevicesRequest{}))
		_, err = i.GetDevice(i.owner(t), &devicev1.GetDeviceRequest{OrganisationId: organisation, DeviceId: want[0]})
		refused(t, err, codes.NotFound, "DEVICE_NOT_FOUND")
	})
}

func TestEnrolment(t *testing.T) {
	i := newWorld(t).start(t)
	id := i.create(t, "request-1").GetDeviceId()
	newCode := func() string {
		made, err := i.CreateClaimCode(i.owner(t), &devicev1.CreateClaimCodeRequest{OrganisationId: organisation, DeviceId: id})
		require.NoError(t, err)
		require.Regexp(t, `^[2-9A-HJKMNP-Z]{8}$`, made.GetClaimCode())
		require.WithinDuration(t, time.Now().Add(10*time.Minute), made.GetExpireTime().AsTime(), time.Minute)
		return made.GetClaimCode()
	}
	claim := func(code string) (*devicev1.Credentials, error) {
		claimed, err := i.ClaimDevice(within(t), &devicev1.ClaimDeviceRequest{ClaimCode: code})
		return claimed.GetCredentials(), err
	}
	_, err := i.RotateCredentials(i.owner(t), &devicev1.RotateCredentialsRequest{OrganisationId: organisation, DeviceId: id})
	refused(t, err, codes.FailedPrecondition, "DEVICE_NOT_CLAIMED")

	superseded := newCode()
	code := newCode()
	_, err = claim(superseded)
	refused(t, err, codes.Unauthenticated, "CLAIM_CODE_INVALID")
	// As somebody types it.
	first, err := claim(strings.ToLower(code[:4]) + "-" + code[4:])
	require.NoError(t, err)
	require.Regexp(t, `^mqd_[A-Za-z0-9_-]{43}$`, first.GetSecret())
	require.Equal(t, devicev1.DeviceState_DEVICE_STATE_CLAIMED, i.get(t, id).GetState())
	_, err = claim(code)
	refused(t, err, codes.Unauthenticated, "CLAIM_CODE_INVALID")

	t.Run("AtOnce", func(t *testing.T) {
		code := newCode()
		results := make(chan error, 8)
		for range cap(results) {
			go func() {
				_, err := claim(code)
				results <- err
			}()
		}
		claimed := 0
		for range cap(results) {
			if err := <-results; err == nil {
				claimed++
			}
		}
		require.Equal(t, 1, claimed, "a code is good once")
	})

	t.Run("Revoked", func(t *testing.T) {
		code := newCode()
		for range 2 {
			_, err := i.RevokeDevice(i.owner(t), &devicev1.RevokeDeviceRequest{OrganisationId: organisation, DeviceId: id})
			require.NoError(t, err)
		}
		require.Equal(t, devicev1.DeviceState_DEVICE_STATE_REVOKED, i.get(t, id).GetState())
		_, err := claim(code)
		require.Error(t, err)
	})
}
