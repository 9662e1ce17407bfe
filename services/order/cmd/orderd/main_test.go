package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

var pg pgtest.Server

// asProgram is the environment variable with which this test binary is orderd.
const asProgram = "ORDERD_TEST_PROGRAM"

// TestMain is also the program that TestCheckLedgerProgram runs.
func TestMain(m *testing.M) {
	if _, ok := os.LookupEnv(asProgram); ok {
		main()
		return
	}
	os.Exit(pg.Main(m))
}

const (
	buyer = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	owner = "org_01BX5ZZKBKACTAV9WEVGEMMVRZ"

	patience = 20 * time.Second
)

// world is what instances of order have around them: a database, an account and a
// device service.
type world struct {
	account  *authtest.Account
	device   *device
	url      string   // of the database
	database []string // flags that name it
	nats     string   // address of NATS; nobody is at the one of newWorld
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := pg.Database(t)
	name, _, _ := strings.Cut(strings.TrimPrefix(url, "postgres:///"), "?")
	return &world{account: authtest.Start(t), device: startDevice(t), url: url, nats: "127.0.0.1:1", database: []string{
		"--database-host", pg.SocketDir(t), "--database-name", name, "--database-user=test",
	}}
}

// flags are those that every orderd of this world has.
func (w *world) flags(more ...string) []string {
	flags := append([]string{"--mesh=plaintext", "--environment=test", "--mode=test", "--drain-delay=0s", "--nats-address=" + w.nats}, w.database...)
	return append(flags, more...)
}

func (w *world) upstreams() map[string][]string {
	return map[string][]string{"account": {w.account.Address()}, "device": {w.device.address}}
}

// instance is a running orderd.
type instance struct {
	orderv1.OrderServiceClient
	orderv1.CreativeServiceClient
	orderv1.WalletServiceClient
	*world
	log  string // the file
	stop func()
}

// start runs an instance on free ports until the test ends, or stop.
func (w *world) start(t *testing.T, flags ...string) *instance {
	t.Helper()
	cfg, err := service.Parse[config]("order", w.flags(append([]string{"--sync-every=1s"}, flags...)...), io.Discard)
	require.NoError(t, err)
	cfg.Upstreams = w.upstreams()
	listening := make(chan service.Addresses, 1)
	cfg.OnListening = func(a service.Addresses) { listening <- a }
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
		i := &instance{
			orderv1.NewOrderServiceClient(conn), orderv1.NewCreativeServiceClient(conn), orderv1.NewWalletServiceClient(conn), w, log.Name(), stop,
		}
		require.Eventually(t, func() bool {
			_, err := i.ListOrders(i.buyer(t), &orderv1.ListOrdersRequest{OrganisationId: buyer})
			return err == nil
		}, patience, 20*time.Millisecond, "the signing keys do not arrive")
		return i
	case err := <-ended:
		ended <- nil
		t.Fatalf("the service ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("the service does not listen within 30 s")
	}
	return nil
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// as is a context with the token of an account that has a role in an organisation.
func (w *world) as(t *testing.T, organisationID string, role auth.Role) context.Context {
	t.Helper()
	return w.account.ContextWithRoles(within(t), t, "test", "acc_ada", auth.Roles{organisationID: role})
}

func (w *world) buyer(t *testing.T) context.Context { return w.as(t, buyer, auth.Advertiser) }
func (w *world) owner(t *testing.T) context.Context { return w.as(t, owner, auth.Operator) }

// refused requires that err is a fault with this code and reason.
func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	require.Error(t, err)
	f := grpcfault.FromStatus(status.Convert(err))
	require.Equal(t, [2]string{code.String(), reason}, [2]string{status.Code(err).String(), f.Reason}, "%v", err)
}

// db is a connection to the database, past the service.
func (w *world) db(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (w *world) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := w.db(t).Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// displays makes devices, and waits until the instance sells them.
func (i *instance) displays(t *testing.T, n int) (ids []string) {
	t.Helper()
	for number := range n {
		ids = append(ids, i.device.add(number))
	}
	require.Eventually(t, func() bool {
		found, err := i.SearchAvailability(i.buyer(t), &orderv1.SearchAvailabilityRequest{OrganisationId: buyer, Flight: days(1), DeviceIds: ids})
		require.NoError(t, err)
		return len(found.GetDisplays()) == n
	}, patience, 50*time.Millisecond, "the displays are not read")
	return ids
}

// days is a flight of so many days from tomorrow on (UTC).
func days(n int) *orderv1.Flight {
	today := time.Now().UTC()
	return &orderv1.Flight{StartDate: today.AddDate(0, 0, 1).Format(time.DateOnly), EndDate: today.AddDate(0, 0, n).Format(time.DateOnly)}
}

// book tops the wallet up by what it needs, and books one slot for two days on each
// display: 2 * 1440 plays of 1 minor unit each, or of what the display costs.
func (i *instance) book(t *testing.T, requestID string, displays ...string) *orderv1.Order {
	t.Helper()
	req := &orderv1.HoldOrderRequest{OrganisationId: buyer, RequestId: "hold-" + requestID, Title: "Winter"}
	for _, id := range displays {
		req.Lines = append(req.Lines, &orderv1.LineRequest{DeviceId: id, Flight: days(2), Slots: 1})
	}
	held, err := i.HoldOrder(i.buyer(t), req)
	require.NoError(t, err)
	_, err = i.TopUpWallet(i.buyer(t), &orderv1.TopUpWalletRequest{
		OrganisationId: buyer, RequestId: "top-up-" + requestID, Amount: held.GetOrder().GetPrice(), PaymentMethod: "card",
	})
	require.NoError(t, err)
	booked, err := i.BookOrder(i.buyer(t), &orderv1.BookOrderRequest{OrganisationId: buyer, OrderId: held.GetOrder().GetOrderId(), RequestId: "book-" + requestID})
	require.NoError(t, err)
	require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, booked.GetOrder().GetState())
	return booked.GetOrder()
}

// past makes it so that an order was made and booked so long ago: all of it at once, as
// instances settle what they find.
func (w *world) past(t *testing.T, orderID string, ago time.Duration) {
	t.Helper()
	back := fmt.Sprintf("interval '%d seconds'", int(ago.Seconds()))
	times := "(SELECT range_agg(tstzrange(lower(r) - " + back + ", upper(r) - " + back + ")) FROM unnest(times) AS r)"
	w.exec(t, `
		WITH moved AS (
			UPDATE orders SET create_time = create_time - `+back+`, hold_expire_time = hold_expire_time - `+back+`,
				book_time = book_time - `+back+`, end_time = end_time - `+back+` WHERE order_id = $1 RETURNING order_id
		), reserved AS (
			UPDATE reservations SET times = `+times+`
			WHERE line_id IN (SELECT line_id FROM lines JOIN moved USING (order_id))
		)
		UPDATE lines SET times = `+times+`, start_time = start_time - `+back+`, end_time = end_time - `+back+`,
			start_date = (start_time - `+back+`)::date, end_date = (end_time - interval '1 microsecond' - `+back+`)::date
		WHERE order_id IN (SELECT order_id FROM moved)`, orderID)
}

// balance is what an organisation has in EUR.
func (i *instance) balance(t *testing.T, organisationID string) int64 {
	t.Helper()
	found, err := i.GetWallet(i.as(t, organisationID, auth.Viewer), &orderv1.GetWalletRequest{OrganisationId: organisationID})
	require.NoError(t, err)
	for _, b := range found.GetBalances() {
		if b.GetCurrency() == "EUR" {
			return b.GetAmountMinor()
		}
	}
	return 0
}

func (i *instance) order(t *testing.T, id string) *orderv1.Order {
	t.Helper()
	found, err := i.GetOrder(i.buyer(t), &orderv1.GetOrderRequest{OrganisationId: buyer, OrderId: id})
	require.NoError(t, err)
	return found.GetOrder()
}

// Nobody tops up for nothing in production, unless the operator says so.
func TestPayments(t *testing.T) {
	for _, c := range []struct {
		mode     string
		payments string
		want     bool
	}{
		{service.Development, "auto", true},
		{service.Test, "auto", true},
		{service.Production, "auto", false},
		{service.Production, "test", true},
		{service.Production, "none", false},
		{service.Development, "none", false},
	} {
		cfg := config{Config: service.Config{Mode: c.mode}, Payments: c.payments}
		require.Equal(t, c.want, cfg.testPayments(), "%s, %s", c.mode, c.payments)
	}
}
