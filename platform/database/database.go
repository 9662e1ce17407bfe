// Package database is a service's Postgres: connections through the mesh,
// waiting for it, migrations, and what goes wrong with it as faults.
package database

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// How long things may take. The server's limits stand below the client's, so
// that it is the server that gives up first, with a clean error. A transaction whose
// process has left, or cannot reach the server, ends before those have waited for
// too long that wait for its locks: a repeated call waits for the call before it.
const (
	connectTimeout   = 3 * time.Second
	statementTimeout = 4 * time.Second
	lockTimeout      = 3 * time.Second
	idleInTxTimeout  = 2 * time.Second
	callTimeout      = 5 * time.Second
	migrationTimeout = 10 * time.Minute
	heardWithin      = time.Second // see Answers
)

// Config says where the database is.
type Config struct {
	// Application is what Postgres shows the connections as.
	Application string
	// Host is a host name, an address, or the folder of a Unix socket. It is not
	// used when Dial is set. The connection to it is not encrypted.
	Host string
	Port uint16
	// Dial opens a connection, for example through the mesh; nil dials Host.
	Dial func(context.Context) (net.Conn, error)

	Name     string
	User     string
	Password string
	// MaxConns bounds the connections of this process, from 2.
	MaxConns int
	// settings are further run-time parameters of each connection.
	settings map[string]string
}

// Database is a pool of connections. A service's store makes its sqlc queries
// on Pool, and runs them within Read, Call and Transact.
type Database struct {
	pool *pgxpool.Pool
	log  hclog.Logger
	// heard is when a use of the database last succeeded, in Unix nanoseconds.
	heard atomic.Int64
}

// Open makes a pool. It does not connect: Prepare does.
func Open(ctx context.Context, cfg Config, log hclog.Logger) (*Database, error) {
	pc, err := pgxpool.ParseConfig(cfg.url())
	if err != nil {
		// pgx leaves the password out of its errors.
		return nil, fmt.Errorf("the database's address: %w", err)
	}
	cc := pc.ConnConfig
	cc.Password = cfg.Password
	cc.ConnectTimeout = connectTimeout
	maps.Copy(cc.RuntimeParams, map[string]string{
		"application_name":                    cfg.Application,
		"timezone":                            "UTC",
		"statement_timeout":                   milliseconds(statementTimeout),
		"lock_timeout":                        milliseconds(lockTimeout),
		"idle_in_transaction_session_timeout": milliseconds(idleInTxTimeout),
	})
	maps.Copy(cc.RuntimeParams, cfg.settings)
	if cfg.Dial != nil {
		cc.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) }
		cc.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	}
	pc.MaxConns = int32(cfg.MaxConns)
	pc.MinIdleConns = 1
	pc.MaxConnLifetime = 30 * time.Minute
	pc.MaxConnLifetimeJitter = 5 * time.Minute
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.HealthCheckPeriod = 15 * time.Second
	pc.PingTimeout = 2 * time.Second
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("making the connection pool: %w", err)
	}
	return &Database{pool: pool, log: log}, nil
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// url is everything but the password. The mesh, the socket's folder or loopback
// secures the connection, so that TLS inside it would only cost. To any other
// host it is not encrypted: Flags refuses those in production.
func (c Config) url() string {
	host := c.Host
	if c.Dial != nil {
		host = throughMesh
	}
	values := url.Values{"host": {host}, "user": {c.User}, "dbname": {c.Name}, "sslmode": {"disable"}}
	if c.Port != 0 {
		values.Set("port", strconv.Itoa(int(c.Port)))
	}
	return "postgres:///?" + values.Encode()
}

// Close closes the connections when they are no longer used.
func (d *Database) Close() { d.pool.Close() }

// Pool is what sqlc's queries run on.
func (d *Database) Pool() *pgxpool.Pool { return d.pool }

// Ping asks the database for an answer.
func (d *Database) Ping(ctx context.Context) error { return d.Read(ctx, d.pool.Ping) }

// Answers says whether the database answers: readiness follows it. It asks when nobody
// has had an answer for a second: behind a thousand others that wait for a connection
// its own question would say that the database is away when it is busy.
func (d *Database) Answers(ctx context.Context) error {
	if time.Since(time.Unix(0, d.heard.Load())) < heardWithin {
		return nil
	}
	return d.Ping(ctx)
}

// Call runs one use of the database within five seconds. A database that is
// away, or too busy, is ErrUnavailable; what else goes wrong comes back as pgx
// tells it, for the store to translate (pgx.ErrNoRows, Violated).
func (d *Database) Call(ctx context.Context, use func(context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := use(within)
	if err == nil {
		d.heard.Store(time.Now().UnixNano())
	}
	if broke(err) {
		// What ended one connection (a restarted proxy, or database) has ended the
		// idle ones in the pool as well.
		d.pool.Reset()
	}
	return translate(ctx, err)
}

// Read is Call for a use that changes nothing: when the connection broke under
// it, it is tried once more on a new one.
func (d *Database) Read(ctx context.Context, use func(context.Context) error) error {
	var first error
	err := d.Call(ctx, func(ctx context.Context) error {
		first = use(ctx)
		return first
	})
	if broke(first) && ctx.Err() == nil {
		return d.Call(ctx, use)
	}
	return err
}

// Transact is Call in one transaction, which an error rolls back.
func (d *Database) Transact(ctx context.Context, use func(context.Context, pgx.Tx) error) error {
	return d.Call(ctx, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error { return use(ctx, tx) })
	})
}

// waitUntilThere waits until the database answers, with a line in the log when
// it does not yet, and fails when ctx ends first or when the database refuses
// this role or password, which waiting does not change.
func (d *Database) waitUntilThere(ctx context.Context) error {
	const first, last = 100 * time.Millisecond, 2 * time.Second
	began, told := time.Now(), time.Time{}
	var why error
	for pause := first; ; pause = min(2*pause, last) {
		err := d.pool.Ping(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for the database: %w (%w)", context.Cause(ctx), errors.Join(why, err))
		}
		why = err
		if err == nil {
			if !told.IsZero() {
				d.log.Info("the database is there", "waited", time.Since(began).Round(time.Millisecond))
			}
			return nil
		}
		var refused *pgconn.PgError
		if errors.As(err, &refused) && (refused.Code == codeInvalidPassword || refused.Code == codeInvalidAuthorization) {
			return fmt.Errorf("logging in to the database: %w", err)
		}
		if time.Since(told) >= 5*time.Second {
			d.log.Info("waiting for the database", "error", err)
			told = time.Now()
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}
