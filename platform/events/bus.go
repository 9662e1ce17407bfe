package events

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	connectTimeout = 3 * time.Second
	// pingEvery and pingsLost notice a server that is gone without a word.
	pingEvery = 5 * time.Second
	pingsLost = 2
	// apiTimeout bounds a request to JetStream, ackTimeout the wait for NATS to
	// have stored an event.
	apiTimeout = 5 * time.Second
	askAgain   = time.Second
	ackTimeout = 3 * time.Second
	// growTimeout bounds the wait for servers that are new to a stream.
	growTimeout = 15 * time.Second
)

// Config says where NATS is.
type Config struct {
	// Name is what NATS shows the connection as.
	Name string
	// Address is host:port of a server, not used when Dial is set. The
	// connection to it is not encrypted.
	Address string
	// Dial opens a connection to any of the servers, for example through the
	// mesh; nil dials Address.
	Dial func(context.Context) (net.Conn, error)
	// User and Password log in; both empty where NATS asks for none.
	User, Password string
	// Log is told when NATS goes and comes, and Metrics what is published and
	// handled. Metrics may be nil.
	Log     hclog.Logger
	Metrics prometheus.Registerer
}

// Bus is a process's connection to NATS. It makes itself anew for ever.
type Bus struct {
	conn    *nats.Conn
	js      jetstream.JetStream
	log     hclog.Logger
	metrics *metrics
	cancel  context.CancelFunc
}

// Connect makes a bus. NATS need not be there yet: what needs it waits. The
// error says what is wrong with the configuration. The caller closes it.
func Connect(cfg Config) (*Bus, error) {
	life, cancel := context.WithCancel(context.Background())
	b := &Bus{log: cfg.Log, cancel: cancel, metrics: newMetrics()}
	if err := b.connect(life, cfg); err != nil {
		b.Close()
		return nil, fmt.Errorf("connecting to NATS: %w", err)
	}
	return b, nil
}

func (b *Bus) connect(life context.Context, cfg Config) error {
	if cfg.Metrics != nil {
		if err := b.metrics.register(cfg.Metrics); err != nil {
			return err
		}
	}
	address := cfg.Address
	options := []nats.Option{
		nats.Name(cfg.Name), nats.Timeout(connectTimeout),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, 250*time.Millisecond),
		nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(pingsLost),
		// What is published while NATS is away fails at once and stays in the outbox.
		nats.ReconnectBufSize(-1),
		// The other servers' addresses are for their own machines: the mesh knows
		// the way to all of them.
		nats.IgnoreDiscoveredServers(),
		nats.ConnectHandler(func(*nats.Conn) { b.log.Info("NATS is there") }),
		nats.ReconnectHandler(func(*nats.Conn) { b.log.Info("NATS is there again") }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { b.log.Warn("lost the connection to NATS", "error", err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { b.log.Debug("NATS is not there", "error", err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { b.log.Warn("NATS says", "error", err) }),
		nats.NoCallbacksAfterClientClose(),
	}
	if cfg.Dial != nil {
		address = "nats"
		options = append(options, nats.SetCustomDialer(&dialer{life, cfg.Dial}), nats.SkipHostLookup())
	}
	if cfg.User != "" || cfg.Password != "" {
		options = append(options, nats.UserInfo(cfg.User, cfg.Password))
	}
	var err error
	if b.conn, err = nats.Connect(address, options...); err != nil {
		return err
	}
	b.js, err = jetstream.New(b.conn, jetstream.WithDefaultTimeout(apiTimeout), jetstream.WithPublishAsyncTimeout(ackTimeout))
	return err
}

// Close ends the connection.
func (b *Bus) Close() {
	b.cancel()
	if b.conn != nil {
		b.conn.Close()
	}
}

// NATS is the connection itself, for messages that need not arrive: those of
// one instance to the others, for example. What is published while NATS is away
// fails.
func (b *Bus) NATS() *nats.Conn { return b.conn }

// dialer is how nats.go wants to be given a way to connect.
type dialer struct {
	life context.Context
	dial func(context.Context) (net.Conn, error)
}

func (d *dialer) Dial(string, string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.life, connectTimeout)
	defer cancel()
	return d.dial(ctx)
}

// ask asks JetStream, again when there is no answer: servers that have just lost
// their leader, or are choosing the first, answer nothing.
func ask[T any](ctx context.Context, question func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	for {
		within, done := context.WithTimeout(ctx, askAgain)
		answer, err := question(within)
		done()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return answer, err
		}
	}
}

// ensure makes the stream as it is described, or brings it up to date. One that
// is as described is left alone: a cluster that lacks a server takes long to
// change what is there, and no time to read it.
func (b *Bus) ensure(ctx context.Context, s Stream) (jetstream.Stream, error) {
	size := s.MaxBytes
	if size == 0 {
		size = -1
	}
	want := jetstream.StreamConfig{
		Name: s.Name, Subjects: s.Subjects,
		Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Replicas: s.Replicas,
		MaxAge: s.MaxAge, MaxBytes: size, Discard: jetstream.DiscardNew,
		Duplicates: duplicates,
	}
	stream, err := ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return b.js.Stream(ctx, s.Name) })
	grows := false
	if err == nil {
		have := stream.CachedInfo().Config
		if slices.Equal(have.Subjects, want.Subjects) && have.Replicas == want.Replicas && have.MaxAge == want.MaxAge &&
			have.MaxBytes == want.MaxBytes && have.Discard == want.Discard && have.Duplicates == want.Duplicates {
			return stream, nil
		}
		grows = have.Replicas < want.Replicas
	}
	if err == nil || errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = ask(ctx, func(ctx context.Context) (jetstream.Stream, error) { return b.js.CreateOrUpdateStream(ctx, want) })
	}
	if err != nil {
		return nil, fmt.Errorf("making stream %s: %w", s.Name, err)
	}
	if grows {
		err = caughtUp(ctx, stream, want.Replicas)
	}
	return stream, err
}

// caughtUp waits until servers that are new to a stream have what is in it. What is
// published before can stop NATS 2.15 for good: the servers do not agree then which
// event is the last ("last msgid mismatch" in its log, and no acknowledgement any more).
func caughtUp(ctx context.Context, stream jetstream.Stream, replicas int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, growTimeout, fmt.Errorf("it took longer than %s", growTimeout))
	defer cancel()
	for {
		info, err := ask(ctx, func(ctx context.Context) (*jetstream.StreamInfo, error) { return stream.Info(ctx) })
		if err == nil && info.Cluster != nil && info.Cluster.Leader != "" {
			current := 1
			for _, r := range info.Cluster.Replicas {
				if r.Current {
					current++
				}
			}
			if current == replicas {
				return nil
			}
		}
		if !wait(ctx, 50*time.Millisecond) {
			return fmt.Errorf("waiting until %d servers of NATS have stream %s: %w", replicas, stream.CachedInfo().Config.Name, context.Cause(ctx))
		}
	}
}

// metrics count what passes.
type metrics struct {
	published prometheus.Counter
	waiting   prometheus.Gauge
	handled   *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "events_published_total", Help: "Events that this instance's relay brought from the outbox to NATS.",
		}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "outbox_oldest_seconds", Help: "Age of the oldest event that is not known to be in NATS, in seconds, 0 for none; all instances of a service say the same.",
		}),
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "events_handled_total", Help: "Events by consumer and outcome: ok, repeated (handled before), retried, set_aside.",
		}, []string{"consumer", "outcome"}),
	}
}

func (m *metrics) register(registry prometheus.Registerer) error {
	return errors.Join(registry.Register(m.published), registry.Register(m.waiting), registry.Register(m.handled))
}
