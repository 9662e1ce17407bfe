package events

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"

	"github.com/marquee-ads/marquee/platform/database"
)

const (
	// window is how many events are taken from NATS before they are handled.
	window = 256
	// ackWait is after which time NATS delivers an event again that was neither
	// acknowledged nor said to be in progress. It is only for what nothing else
	// notices: a new turn, and a new connection, begin at what is not acknowledged.
	ackWait = time.Minute
	// heartbeat is how often NATS says that it still looks for events: two that
	// are missing end the turn, because the server that looked is gone.
	heartbeat = time.Second
	// checkEvery is how soon a consumer notices that its turn is over.
	checkEvery = time.Second
	// missedChecks is at how many checks one after the other NATS has to have delivered
	// more than came, and nothing came between them, before it went elsewhere.
	missedChecks = 3
	pruneEvery   = time.Minute
	// remember is for how long the inbox keeps what is acknowledged. NATS loses
	// the last acknowledgements when its machine does.
	remember   = time.Hour
	pruneBatch = 5000

	defaultWorkers  = 4
	defaultAttempts = 5
	defaultRetry    = 200 * time.Millisecond
	lastRetry       = 5 * time.Second
)

// ConsumerConfig says what a consumer handles, and how.
type ConsumerConfig struct {
	// Stream is the publisher's: "ORDER". It need not exist yet.
	Stream string
	// Name is the consumer's for ever: NATS and the inbox know by it what was
	// handled. It begins with the service's name: "device", "device-prices".
	Name string
	// Subjects are patterns of what is handled, within the stream.
	Subjects []string
	// Handle is called for each event.
	Handle Handler
	// Workers is how many events are handled at the same time, of different
	// keys; 0 is 4. Each takes a connection to the database.
	Workers int
	// Attempts is how often an event is handled before it is set aside; 0 is 5.
	// While the database is unavailable attempts do not count, for five minutes.
	Attempts int
	// Retry is the pause after the first attempt in vain, which doubles up to five
	// seconds; 0 is 200 ms. Only events of the same key wait meanwhile.
	Retry time.Duration
}

func (c ConsumerConfig) check() (ConsumerConfig, error) {
	if !streamName.MatchString(c.Stream) {
		return c, fmt.Errorf("the stream's name %q must be 1 to 63 capitals, digits and underscores, such as ORDER", c.Stream)
	}
	if !consumerName.MatchString(c.Name) {
		return c, fmt.Errorf("the consumer's name %q must be 1 to 63 lower-case letters, digits and hyphens, such as device", c.Name)
	}
	if err := checkPatterns(c.Subjects); err != nil {
		return c, fmt.Errorf("consumer %s: %w", c.Name, err)
	}
	if c.Handle == nil {
		return c, fmt.Errorf("consumer %s: Handle is missing", c.Name)
	}
	if c.Workers < 0 || c.Attempts < 0 || c.Retry < 0 {
		return c, fmt.Errorf("consumer %s: Workers, Attempts and Retry cannot be negative; leave them out for the defaults", c.Name)
	}
	if c.Workers == 0 {
		c.Workers = defaultWorkers
	}
	if c.Attempts == 0 {
		c.Attempts = defaultAttempts
	}
	if c.Retry == 0 {
		c.Retry = defaultRetry
	}
	return c, nil
}

// Consumer handles the events of a stream, each once. Every instance of a
// service runs one, and one of them works: that keeps the order.
type Consumer struct {
	cfg ConsumerConfig
	db  *database.Database
	bus *Bus
	log hclog.Logger
	// bearable is for how long the database may be unavailable to one event while
	// this consumer has its turn.
	bearable time.Duration
}

// NewConsumer makes a consumer. The error says what is wrong with cfg.
func NewConsumer(db *database.Database, bus *Bus, cfg ConsumerConfig) (*Consumer, error) {
	cfg, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return &Consumer{cfg: cfg, db: db, bus: bus, log: bus.log.With("consumer", cfg.Name), bearable: 5 * time.Minute}, nil
}

// Run handles events until ctx ends, and returns when none is being handled any
// more. While Postgres or NATS is away, or there is no such stream, it waits.
func (c *Consumer) Run(ctx context.Context) error {
	whileAlone(ctx, c.db, "consumer "+c.cfg.Name+" of "+c.cfg.Stream, c.log, c.consume)
	return nil
}

// consume works while it holds the lock and the connection to NATS lasts.
func (c *Consumer) consume(ctx context.Context, conn *pgx.Conn) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	// Events on a broken connection are lost for a while, and later ones would
	// pass them.
	status := c.bus.conn.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer c.bus.conn.RemoveStatusListener(status)

	consumer, err := c.subscribe(ctx)
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(window), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return fmt.Errorf("asking NATS for events: %w", err)
	}
	stop := context.AfterFunc(ctx, messages.Stop)
	defer func() {
		if stop() {
			messages.Stop()
		}
	}()
	var received atomic.Uint64
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		end(c.watch(ctx, conn, status, consumer, &received))
	}()
	defer func() { end(nil); <-watched }()

	c.log.Info("handling events", "stream", c.cfg.Stream)
	lanes := newLanes(c.cfg.Workers)
	defer func() { end(nil); lanes.wait() }()
	if err := c.receive(ctx, messages, lanes, &received); ctx.Err() == nil {
		return err
	}
	return context.Cause(ctx)
}

// subscribe makes the consumer in NATS, and sets it back to what is not
// acknowledged: what an earlier turn left would otherwise come after later events.
func (c *Consumer) subscribe(ctx context.Context) (jetstream.Consumer, error) {
	want := jetstream.ConsumerConfig{
		Durable: c.cfg.Name, FilterSubjects: c.cfg.Subjects,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: ackWait, MaxAckPending: window, MaxDeliver: -1,
	}
	consumer, err := ask(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
		return c.bus.js.Consumer(ctx, c.cfg.Stream, c.cfg.Name)
	})
	same := false
	if err == nil {
		have := consumer.CachedInfo().Config
		subjects := have.FilterSubjects
		if have.FilterSubject != "" {
			subjects = []string{have.FilterSubject}
		}
		same = slices.Equal(subjects, want.FilterSubjects) && have.AckWait == want.AckWait && have.MaxAckPending == want.MaxAckPending
	}
	if !same && (err == nil || errors.Is(err, jetstream.ErrConsumerNotFound)) {
		consumer, err = ask(ctx, func(ctx context.Context) (jetstream.Consumer, error) {
			return c.bus.js.CreateOrUpdateConsumer(ctx, c.cfg.Stream, want)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("making the consumer in stream %s: %w", c.cfg.Stream, err)
	}
	if _, err := ask(ctx, func(ctx context.Context) (*jetstream.ConsumerResetResponse, error) {
		return c.bus.js.ResetConsumer(ctx, c.cfg.Stream, c.cfg.Name)
	}); err != nil {
		return nil, fmt.Errorf("setting the consumer back: %w", err)
	}
	return consumer, nil
}

// watch returns why the turn is over, and prunes the inbox meanwhile. received is how
// many deliveries came in this turn.
func (c *Consumer) watch(ctx context.Context, conn *pgx.Conn, status <-chan nats.Status, consumer jetstream.Consumer, received *atomic.Uint64) error {
	check, prune := time.NewTicker(checkEvery), time.NewTicker(pruneEvery)
	defer check.Stop()
	defer prune.Stop()
	missed, last := 0, uint64(0)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-status:
			return errors.New("the connection to NATS broke")
		case <-check.C:
			within, cancel := context.WithTimeout(ctx, sessionTimeout)
			err := conn.Ping(within)
			cancel()
			if err != nil {
				return fmt.Errorf("the connection to the database broke: %w", err)
			}
			// Who had the turn before notices a little later that it is over, and may
			// have got the last events until then. receive sees that others are missing.
			now := received.Load()
			if now != last {
				missed, last = 0, now
			}
			if delivered, ok := c.delivered(ctx, consumer); ok && delivered > now {
				missed++
			} else {
				missed = 0
			}
			if missed == missedChecks {
				return fmt.Errorf("delivery %d of NATS went elsewhere", now+1)
			}
		case <-prune.C:
			if err := c.prune(ctx, consumer, time.Now()); err != nil {
				c.log.Warn("the inbox is not pruned", "error", err)
			}
		}
	}
}

// delivered is how many deliveries NATS has made since the turn began; not ok when it
// does not say, which is for others to notice.
func (c *Consumer) delivered(ctx context.Context, consumer jetstream.Consumer) (n uint64, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, checkEvery)
	defer cancel()
	info, err := consumer.Info(ctx)
	if err != nil {
		return 0, false
	}
	return info.Delivered.Consumer, true
}

// receive gives events to the lanes in the order in which NATS delivers them,
// and ends at the first that is missing.
func (c *Consumer) receive(ctx context.Context, messages jetstream.MessagesContext, lanes *lanes, received *atomic.Uint64) error {
	for expected := uint64(1); ; expected++ {
		msg, err := messages.Next()
		if err != nil {
			return fmt.Errorf("receiving events: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("receiving events: %w", err)
		}
		if meta.Sequence.Consumer != expected {
			return fmt.Errorf("delivery %d of NATS did not arrive", expected)
		}
		received.Store(expected)
		d := newDelivery(msg, meta)
		lanes.add(ctx, d, func() time.Duration { return c.handle(ctx, d) })
	}
}

// delivery is an event on its way to the handler.
type delivery struct {
	Event
	msg      jetstream.Msg
	seq      uint64
	trace    string
	foreign  error // why it is not an event
	failures int
	since    time.Time // of the first attempt in vain
	pause    time.Duration
}

func newDelivery(msg jetstream.Msg, meta *jetstream.MsgMetadata) *delivery {
	header := msg.Headers()
	d := &delivery{
		Event: Event{
			ID: header.Get(jetstream.MsgIDHeader), Subject: msg.Subject(), Key: header.Get(headerKey), Payload: msg.Data(),
		},
		msg: msg, seq: meta.Sequence.Stream, trace: header.Get(headerTrace),
	}
	var err error
	if d.Time, err = time.Parse(time.RFC3339Nano, header.Get(headerTime)); err != nil || d.ID == "" || d.Key == "" {
		d.foreign = fmt.Errorf("it is not from an outbox: the headers %s, %s or %s are missing or wrong", jetstream.MsgIDHeader, headerKey, headerTime)
		d.ID = fmt.Sprintf("%s-%d", meta.Stream, meta.Sequence.Stream)
		d.Time = meta.Timestamp
	}
	return d
}

// handle makes one attempt, and says after which pause to make another; 0 is
// that it is done.
func (c *Consumer) handle(ctx context.Context, d *delivery) time.Duration {
	repeated, err := c.attempt(ctx, d)
	switch {
	case err == nil && repeated:
		c.count("repeated")
	case err == nil:
		c.count("ok")
	case ctx.Err() != nil:
		return 0
	default:
		if c.counts(d, err) {
			d.failures++
			var permanent *permanentError
			if errors.As(err, &permanent) || d.failures >= c.cfg.Attempts {
				if err = c.setAside(ctx, d, err); err == nil {
					break
				}
			}
		}
		c.count("retried")
		c.log.Warn("an event could not be handled; trying again", "event", d.ID, "subject", d.Subject, "attempt", d.failures, "error", err)
		_ = d.msg.InProgress() // without it the event comes once more, and is known
		d.pause = max(c.cfg.Retry, min(2*d.pause, lastRetry))
		return d.pause
	}
	if err := d.msg.Ack(); err != nil {
		c.log.Debug("an event could not be acknowledged; it will come again", "event", d.ID, "error", err)
	}
	return 0
}

// counts says whether the attempt was one: that the database is away or busy is
// no fault of the event, unless it goes on for longer than others would wait.
func (c *Consumer) counts(d *delivery, err error) bool {
	if d.since.IsZero() {
		d.since = time.Now()
	}
	return !errors.Is(err, database.ErrUnavailable) || time.Since(d.since) > c.bearable
}

func (c *Consumer) count(outcome string) {
	c.bus.metrics.handled.WithLabelValues(c.cfg.Name, outcome).Inc()
}

// attempt handles the event in one transaction with the note that it did.
func (c *Consumer) attempt(ctx context.Context, d *delivery) (repeated bool, err error) {
	if d.foreign != nil {
		return false, Permanent(d.foreign)
	}
	err = c.db.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		fresh, err := c.note(ctx, tx, d)
		if err != nil {
			return err
		}
		repeated = !fresh
		if repeated {
			return nil
		}
		return c.call(ctx, tx, d.Event, d.trace)
	})
	return repeated, err
}

// note says whether the event is not in the inbox yet, where it is then.
func (c *Consumer) note(ctx context.Context, tx pgx.Tx, d *delivery) (fresh bool, err error) {
	tag, err := tx.Exec(ctx, `
		INSERT INTO inbox (consumer, event_id, stream_seq, handle_time) VALUES ($1, $2, $3, now())
		ON CONFLICT (consumer, event_id) DO NOTHING`, c.cfg.Name, d.ID, int64(d.seq))
	if err != nil {
		return false, fmt.Errorf("noting the event: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// call calls the handler, whose panic is an error like others.
func (c *Consumer) call(ctx context.Context, tx pgx.Tx, e Event, trace string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v", p)
			c.log.Error("a handler of events panicked", "event", e.ID, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if trace != "" {
		ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": trace})
	}
	return c.cfg.Handle(ctx, tx, e)
}

// prune forgets what cannot come again: it is acknowledged, for a while, or no
// longer in the stream.
func (c *Consumer) prune(ctx context.Context, consumer jetstream.Consumer, now time.Time) error {
	within, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	info, err := consumer.Info(within)
	if err != nil {
		return fmt.Errorf("asking NATS what is acknowledged: %w", err)
	}
	stream, err := c.bus.js.Stream(within, c.cfg.Stream)
	if err != nil {
		return fmt.Errorf("asking NATS for how long events are kept: %w", err)
	}
	kept := stream.CachedInfo().Config.MaxAge
	if kept == 0 {
		kept = 100 * 365 * 24 * time.Hour
	}
	for n := int64(pruneBatch); n == pruneBatch; {
		err := c.db.Call(ctx, func(ctx context.Context) error {
			tag, err := c.db.Pool().Exec(ctx, `
				DELETE FROM inbox WHERE ctid = ANY (ARRAY (
					SELECT ctid FROM inbox
					WHERE consumer = $1 AND handle_time < $2 AND (stream_seq <= $3 OR handle_time < $4)
					ORDER BY handle_time LIMIT $5))`,
				c.cfg.Name, now.Add(-remember), int64(info.AckFloor.Stream), now.Add(-remember-kept), pruneBatch)
			n = tag.RowsAffected()
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
