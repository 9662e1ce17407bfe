// Command orderd is the order service: air time that is sold, what is shown in it, and
// the money for it.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"
	_ "time/tzdata" // displays stand in every zone, and images have no zone files

	"google.golang.org/grpc"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/blobs"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/devices"
	"github.com/marquee-ads/marquee/services/order/media"
	"github.com/marquee-ads/marquee/services/order/postgres"
	"github.com/marquee-ads/marquee/services/order/server"
)

type config struct {
	service.Config
	Database    database.Flags `embed:"" prefix:"database-"`
	NATS        events.Flags   `embed:"" prefix:"nats-"`
	KeysFrom    string         `default:"account" help:"Consul service that publishes the keys of access tokens."`
	DevicesFrom string         `default:"device" help:"Consul service that has the displays, and what they played."`
	MediaURL    string         `help:"Where media are kept: the same as the device service has, file:///folder or s3://bucket?endpoint=https://... Empty: there are none, and no creatives."`

	Payments string `enum:"auto,test,none" default:"auto" help:"Who takes the money of top-ups: test says that it did, but for the payment method declined, and takes none; with none nobody tops up; auto is test, and in production none."`

	SettleAfter          time.Duration `default:"48h" help:"How long after its last line has ended an order is settled: until then players that were offline may hand plays in."`
	PlatformSharePercent int           `default:"20" help:"What of the earnings of displays is the platform's, in percent."`
	SweepEvery           time.Duration `default:"1m" help:"How often holds that have expired are removed, and orders that are over settled."`
	SyncEvery            time.Duration `default:"1h" help:"How often all displays are read from the device service, besides its events."`

	CheckLedger      bool          `env:"-" help:"Serve nothing: go over all entries, orders and reservations, print what does not fit together, and exit; with 1 when anything does not."`
	CheckPlaylists   bool          `env:"-" help:"Serve nothing: compare what devices know with what is sold, print what differs, and exit; with 1 when anything does."`
	CheckWithin      time.Duration `env:"-" default:"10s" help:"How long --check-playlists gives events that are on their way to devices."`
	RebuildPlaylists bool          `env:"-" help:"Serve nothing: make what devices know anew from what is sold, print how much was different, and exit."`

	// Output is where the commands print; nil is standard output.
	Output io.Writer `kong:"-"`
}

// Validate checks what only this service has.
func (c *config) Validate() error {
	var problems []error
	for _, d := range []struct {
		flag  string
		value time.Duration
		least time.Duration
	}{{"settle-after", c.SettleAfter, 0}, {"sweep-every", c.SweepEvery, time.Millisecond}, {"sync-every", c.SyncEvery, time.Second}, {"check-within", c.CheckWithin, 0}} {
		if d.value < d.least {
			problems = append(problems, fmt.Errorf("--%s: %s is too short; use %s or more", d.flag, d.value, d.least))
		}
	}
	if c.PlatformSharePercent < 0 || c.PlatformSharePercent > 100 {
		problems = append(problems, fmt.Errorf("--platform-share-percent: %d is no share; use 0 to 100", c.PlatformSharePercent))
	}
	if len(c.commands()) > 1 {
		problems = append(problems, errors.New("--check-ledger, --check-playlists and --rebuild-playlists: one at a time"))
	}
	return errors.Join(append(problems, c.Database.Check(&c.Config), c.NATS.Check(&c.Config))...)
}

// testPayments says whether anybody can top up without paying.
func (c *config) testPayments() bool {
	return c.Payments == "test" || c.Payments == "auto" && c.Mode != service.Production
}

// commands are what is done in place of serving.
func (c *config) commands() (chosen []command) {
	for _, o := range []struct {
		given bool
		do    command
	}{{c.CheckLedger, checkLedger}, {c.CheckPlaylists, checkPlaylists}, {c.RebuildPlaylists, rebuildPlaylists}} {
		if o.given {
			chosen = append(chosen, o.do)
		}
	}
	return chosen
}

func main() { service.Main("order", run) }

// run is the service from its first to its last moment; tests call it with port 0.
func run(ctx context.Context, cfg config) error {
	commands := cfg.commands()
	if len(commands) > 0 {
		cfg.AdminListen = "127.0.0.1:0" // the configured one is that of the instance beside it
	}
	svc, err := service.New(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer svc.Close()

	db, err := cfg.Database.Open(ctx, &cfg.Config, svc)
	if err != nil {
		return err
	}
	defer db.Close()
	stream := postgres.Stream(cfg.NATS.Replicas)
	outbox, err := events.NewOutbox(stream)
	if err != nil {
		return err
	}
	store := postgres.New(db, outbox, server.Event, cfg.PlatformSharePercent)
	conn, err := svc.NewClient(cfg.DevicesFrom, grpc.WithDefaultServiceConfig(devices.ServiceConfig))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := devices.New(conn)
	outside := order.Outside{Plays: client}
	if cfg.testPayments() {
		outside.Payments = store.TestPayments()
	}
	if len(commands) > 0 {
		return execute(ctx, svc, commands[0], job{
			sales: order.New(store, outside, time.Now, rand.Reader), playlists: client, checkWithin: cfg.CheckWithin, out: cmp.Or(cfg.Output, io.Writer(os.Stdout)),
		})
	}
	svc.Add(service.Component{Name: "the database", Start: store.Prepare})

	bus, err := cfg.NATS.Open(&cfg.Config, svc)
	if err != nil {
		return err
	}
	defer bus.Close()
	svc.AddBackground("relaying events", events.NewRelay(db, bus, stream).Run)
	displays, err := events.NewConsumer(db, bus, events.ConsumerConfig{
		Stream: "DEVICE", Name: "order", Subjects: []string{"device.>"}, Handle: server.DisplayHandler(store),
	})
	if err != nil {
		return err
	}
	svc.AddBackground("handling what happens to displays", displays.Run)

	publisher, err := svc.NewClient(cfg.KeysFrom)
	if err != nil {
		return err
	}
	defer publisher.Close()
	keys := auth.NewRemoteKeys(publisher, svc.Log())
	svc.AddBackground("reading the signing keys", keys.Run)

	if cfg.MediaURL != "" {
		kept, err := blobs.Open(ctx, cfg.MediaURL, blobs.Limits{})
		if err != nil {
			return fmt.Errorf("--media-url: %w", err)
		}
		svc.Add(service.Component{Name: "the media", Stop: func(context.Context) error { return kept.Close() }})
		// Two thirds of what the process may have: the rest is for everything else.
		if outside.Media, err = media.New(kept, debug.SetMemoryLimit(-1)/3*2); err != nil {
			return errors.Join(err, kept.Close())
		}
	}
	sales := order.New(store, outside, time.Now, rand.Reader)
	log := svc.Log()
	svc.AddBackground("reading the displays", repeated(cfg.SyncEvery, syncAgain, func(ctx context.Context) error {
		changed, err := sales.SyncDisplays(ctx, client)
		if err != nil && ctx.Err() == nil {
			log.Warn("reading the displays; trying again", "error", err)
		} else if changed > 0 {
			log.Info("read the displays", "changed", changed)
		}
		return err
	}))
	svc.AddBackground("sweeping", repeated(cfg.SweepEvery, cfg.SweepEvery, func(ctx context.Context) error {
		swept, err := store.Sweep(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			log.Warn("sweeping", "error", err)
		} else if swept > 0 {
			log.Debug("swept", "rows", swept)
		}
		return err
	}))
	svc.AddBackground("settling", repeated(cfg.SweepEvery, cfg.SweepEvery, func(ctx context.Context) error {
		settled, err := sales.Settle(ctx, cfg.SettleAfter)
		if err != nil && ctx.Err() == nil {
			log.Warn("settling orders; trying again later", "error", err)
		}
		if settled > 0 {
			log.Info("settled orders", "orders", settled)
		}
		return err
	}))

	grpcServer := svc.NewGRPCServer(service.GRPCOptions{Keys: keys})
	orderv1.RegisterOrderServiceServer(grpcServer, server.NewServer(sales))
	orderv1.RegisterCreativeServiceServer(grpcServer, server.NewCreatives(sales))
	orderv1.RegisterWalletServiceServer(grpcServer, server.NewWallets(sales))
	return svc.Serve(ctx)
}

// syncAgain is how soon the displays are read again that could not be.
const syncAgain = 5 * time.Second

// repeated calls do at once and then every so often, until its context ends; after an
// error again.
func repeated(every, again time.Duration, do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			pause := every
			if err := do(ctx); err != nil {
				pause = min(every, again)
			}
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
		}
	}
}
