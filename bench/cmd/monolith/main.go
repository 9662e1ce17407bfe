// Command monolith is a yardstick: sign-up, log-in and the read of an account as
// one HTTP handler with its own SQL, on the account service's tables and with
// its password hashes, in plaintext and with no mesh, metrics or logs.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"net"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/marquee-ads/marquee/bench/yardstick"
	"github.com/marquee-ads/marquee/services/account"
)

// The flags that accountd has as well are called as there.
func main() {
	var (
		database    = flag.String("database", "", "URL of the database, which accountd has migrated; PGPASSWORD is the role's password")
		conns       = flag.Int("database-max-conns", 0, "most connections")
		memory      = flag.Uint("password-memory", 0, "memory of one password hash in KiB")
		passes      = flag.Uint("password-passes", 0, "passes of one password hash")
		concurrency = flag.Int("password-concurrency", 0, "password hashes at once")
		queue       = flag.Int("password-queue", 0, "log-ins and sign-ups that may wait for their turn to hash")
	)
	yardstick.Main(func(ctx context.Context, listener net.Listener) error {
		params := account.HashParams{MemoryKiB: uint32(*memory), Time: uint32(*passes), Threads: 1}
		hasher, err := account.NewHasher(params, *concurrency, *queue, rand.Reader)
		if err != nil {
			return err
		}
		config, err := pgxpool.ParseConfig(*database)
		if err != nil {
			return fmt.Errorf("-database: %w", err)
		}
		config.MaxConns = int32(*conns)
		pool, err := pgxpool.NewWithConfig(ctx, config)
		if err != nil {
			return fmt.Errorf("make the connection pool: %w", err)
		}
		defer pool.Close()
		accounts, err := newAccounts(pool, hasher)
		if err != nil {
			return err
		}
		return yardstick.ServeHTTP(ctx, listener, newHandler(accounts))
	})
}
