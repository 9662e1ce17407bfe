// Command deviced is the device service: displays, their players, and what they
// play.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
	_ "time/tzdata" // displays stand in every zone, and images have no zone files

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/platform/service"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/mqtt"
	"github.com/marquee-ads/marquee/services/device/postgres"
	"github.com/marquee-ads/marquee/services/device/server"
)

type config struct {
	service.Config
	Database database.Flags `embed:"" prefix:"database-"`
	NATS     events.Flags   `embed:"" prefix:"nats-"`
	KeysFrom string         `default:"account" help:"Consul service that publishes the keys of access tokens."`

	PlayersListen       string `default:"127.0.0.1:0" help:"Address in the mesh to which gateways pass the connections of players on. Port 0 takes a free one."`
	MqttListen          string `default:"127.0.0.1:0" help:"Address on which players connect without a gateway. Port 0 takes a free one."`
	MqttCertificateFile string `type:"path" help:"File with the certificate chain (PEM) that players are shown: they then connect over TLS, and over nothing else. It and the key are read for each connection, so that renewed ones are used at once. Empty: no encryption."`
	MqttKeyFile         string `type:"path" help:"File with the certificate's private key (PEM)."`

	MqttConnections   int           `default:"5000" help:"Most players connected to this instance."`
	MqttConnecting    int           `default:"500" help:"Most of them that are not let in yet; beyond that those make room that have said nothing for the longest."`
	MqttConnectWithin time.Duration `default:"10s" help:"How long a connection may take until its player is let in."`
	MqttKeepAlive     time.Duration `default:"5m" help:"Longest keep-alive; a player that asks for more gets this."`

	Media mediaFlags `embed:"" prefix:"media-"`

	CheckPlays bool `env:"-" help:"Serve nothing: compare the hourly sums of all plays that are kept with the plays, print the hours that disagree, and exit; with 1 when any do."`

	// Output is where --check-plays prints; nil is standard output.
	Output io.Writer `kong:"-"`
	// OnMQTT, when set, is called once with the address on which players connect:
	// tests run the service on port 0.
	OnMQTT func(address string) `kong:"-"`
	// OnMedia is the same for the port of media.
	OnMedia func(address string) `kong:"-"`
}

// Validate checks what only this service has.
func (c *config) Validate() error {
	var problems []error
	for _, a := range []struct{ flag, address string }{{"players-listen", c.PlayersListen}, {"mqtt-listen", c.MqttListen}} {
		if _, _, err := net.SplitHostPort(a.address); err != nil {
			problems = append(problems, fmt.Errorf("--%s: %q is not an address; use host:port, for example 127.0.0.1:1883", a.flag, a.address))
		}
	}
	if (c.MqttCertificateFile == "") != (c.MqttKeyFile == "") {
		problems = append(problems, errors.New("--mqtt-certificate-file: it and --mqtt-key-file belong together; give both, or neither"))
	}
	if c.Mode == service.Production && c.MqttCertificateFile == "" && !loopback(c.MqttListen) {
		problems = append(problems, fmt.Errorf("--mqtt-listen: %s is not on loopback, and players would send their passwords unencrypted; give --mqtt-certificate-file, or listen on 127.0.0.1", c.MqttListen))
	}
	if err := c.limits().Validate(); err != nil {
		problems = append(problems, fmt.Errorf("--mqtt-*: %w", err))
	}
	return errors.Join(append(problems, c.Media.check(), c.Database.Check(&c.Config), c.NATS.Check(&c.Config))...)
}

func loopback(address string) bool {
	host, _, _ := net.SplitHostPort(address) // Validate names one that is none
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// encryption is nil without a certificate. A pair that cannot be used is an error
// at start, and later fails the connections that want it.
func (c *config) encryption() (*tls.Config, error) {
	if c.MqttCertificateFile == "" {
		return nil, nil
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.MqttCertificateFile, c.MqttKeyFile)
		if err != nil {
			return nil, fmt.Errorf("--mqtt-certificate-file: reading it and its key: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return load() },
	}, nil
}

func (c *config) limits() mqtt.Limits {
	limits := mqtt.DefaultLimits()
	limits.Connections, limits.Connecting = c.MqttConnections, c.MqttConnecting
	limits.ConnectWithin, limits.KeepAlive = c.MqttConnectWithin, c.MqttKeepAlive
	return limits
}

func main() { service.Main("device", run) }

// run is the service from its first to its last moment; tests call it with port 0.
func run(ctx context.Context, cfg config) error {
	encryption, err := cfg.encryption()
	if err != nil {
		return err
	}
	if cfg.CheckPlays {
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
	store := postgres.New(db, outbox, server.Event)
	if cfg.CheckPlays {
		within, cancel := context.WithTimeout(ctx, meshWithin)
		defer cancel()
		if err := svc.Mesh().Ready(within); err != nil {
			return err
		}
		return checkPlays(ctx, store, cmp.Or(cfg.Output, io.Writer(os.Stdout)), time.Now())
	}
	svc.Add(service.Component{Name: "the database", Start: store.Prepare})

	bus, err := cfg.NATS.Open(&cfg.Config, svc)
	if err != nil {
		return err
	}
	defer bus.Close()
	svc.AddBackground("relaying events", events.NewRelay(db, bus, stream).Run)
	devices := device.New(store, device.DefaultThrottle(), time.Now, rand.Reader)
	lines, err := events.NewConsumer(db, bus, events.ConsumerConfig{
		Stream: postgres.LinesStream, Name: "device", Subjects: []string{postgres.LinesSubject}, Handle: store.LineChanged(server.Line, devices.Takedown, time.Now),
	})
	if err != nil {
		return err
	}
	svc.AddBackground("handling booked lines", lines.Run)

	publisher, err := svc.NewClient(cfg.KeysFrom)
	if err != nil {
		return err
	}
	defer publisher.Close()
	keys := auth.NewRemoteKeys(publisher, svc.Log())
	svc.AddBackground("reading the signing keys", keys.Run)
	svc.AddBackground("sweeping", func(ctx context.Context) error { return sweep(ctx, store, svc) })

	plane := device.NewPlane(store, svc.InstanceID(), time.Now, svc.Log().Named("plane"))
	svc.AddBackground("the device plane", plane.Run)
	refused := mqtt.NewRefused()
	svc.Metrics().MustRegister(append(plane.Metrics(), refused)...)
	svc.Add(players(cfg, svc, plane, refused, encryption))
	if err := addMedia(ctx, cfg, svc, keys); err != nil {
		return err
	}

	grpcServer := svc.NewGRPCServer(service.GRPCOptions{Keys: keys})
	devicev1.RegisterDeviceServiceServer(grpcServer, server.New(devices, plane.Watches()))
	// Added last and so stopped first: calls that are open would hold the rest up.
	svc.Add(service.Component{Name: "the watches", Stop: func(context.Context) error {
		plane.Watches().Stop()
		return nil
	}})
	return svc.Serve(ctx)
}

// portName is what gateways know the mesh port of players by.
const portName = "players"

// players is the part of the service that players connect to.
func players(cfg config, svc *service.Service, plane *device.Plane, refused mqtt.Refused, encryption *tls.Config) service.Component {
	var (
		listener *mqtt.Listener
		log      = svc.Log().Named("mqtt")
		served   = make(chan struct{})
	)
	return service.Component{
		Name: "the ports of players",
		Start: func(ctx context.Context) error {
			direct, passed, err := listen(ctx, cfg)
			if err != nil {
				return err
			}
			address, err := svc.Advertised(passed.Addr())
			if err != nil {
				return errors.Join(err, direct.Close(), passed.Close())
			}
			broker, err := mqtt.NewBroker(plane, cfg.limits(), refused, log)
			if err != nil {
				return errors.Join(err, direct.Close(), passed.Close())
			}
			listener = mqtt.NewListener([]mqtt.Port{
				{Listener: direct},
				{Listener: svc.Mesh().Listener(passed), Proxied: true},
			}, encryption, broker, cfg.limits(), refused, log)
			svc.Annotate(portName, address)
			log.Info("players can connect", "gateways", address, "direct", direct.Addr(), "encrypted", encryption != nil)
			if cfg.OnMQTT != nil {
				cfg.OnMQTT(direct.Addr().String())
			}
			go func() {
				defer close(served)
				listener.Serve()
			}()
			return nil
		},
		Stop: func(ctx context.Context) error {
			err := listener.Close(ctx)
			<-served
			return err
		},
	}
}

// listen opens both ports of players.
func listen(ctx context.Context, cfg config) (direct, passed net.Listener, err error) {
	var config net.ListenConfig
	if direct, err = config.Listen(ctx, "tcp", cfg.MqttListen); err != nil {
		return nil, nil, fmt.Errorf("--mqtt-listen: %w", err)
	}
	if passed, err = config.Listen(ctx, "tcp", cfg.PlayersListen); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("--players-listen: %w", err), direct.Close())
	}
	return direct, passed, nil
}

// errDisagree is why --check-plays exits with 1.
var errDisagree = errors.New("sums of plays are not those of the plays")

// meshWithin is how long --check-plays waits for the way to the database.
const meshWithin = 20 * time.Second

// printedADay is how many hours of one day are printed: the first are enough to
// see what is wrong.
const printedADay = 1000

// checkPlays proves that the sums are those of the plays, or prints where not. It
// goes by days, as plays are stored.
func checkPlays(ctx context.Context, store *postgres.Store, out io.Writer, now time.Time) error {
	const day = 24 * time.Hour
	disagree := 0
	until := now.Add(day)
	for from := now.Add(-device.PlaysKept).UTC().Truncate(day); from.Before(until); from = from.Add(day) {
		found, err := store.Disagreements(ctx, device.Span{From: from, To: from.Add(day)}, printedADay)
		if err != nil {
			return fmt.Errorf("checking the plays of %s: %w", from.Format(time.DateOnly), err)
		}
		for _, d := range found {
			if _, err := fmt.Fprintf(out, "%s device %s creative %s: %d summed, %d stored\n", d.Hour.Format(time.RFC3339), d.DeviceID, d.CreativeID, d.Summed, d.Stored); err != nil {
				return fmt.Errorf("printing: %w", err)
			}
		}
		disagree += len(found)
	}
	if disagree > 0 {
		return fmt.Errorf("%w: %d hours disagree", errDisagree, disagree)
	}
	if _, err := fmt.Fprintln(out, "all hours agree with their plays"); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

const sweepEvery = 5 * time.Minute

// sweep removes what is not needed any more, until ctx ends.
func sweep(ctx context.Context, store *postgres.Store, svc *service.Service) error {
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	for {
		if n, err := store.Sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			svc.Log().Warn("sweeping", "error", err)
		} else if n > 0 {
			svc.Log().Debug("swept", "rows", n)
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
