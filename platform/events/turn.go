package events

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/database"
)

const (
	// lockClass keeps these advisory locks apart from others with two numbers.
	lockClass int32 = 0x6d617271
	// standbyPoll is how often those who wait ask for the lock. To wait for it in
	// the database would hold a snapshot, and so vacuum, for as long.
	standbyPoll = 500 * time.Millisecond
	// sessionTimeout bounds each statement of the connection that holds the lock.
	sessionTimeout    = 5 * time.Second
	firstPause        = 100 * time.Millisecond
	lastPause         = 2 * time.Second
	workedFor         = 10 * time.Second // after which the pause begins anew
	logSameErrorAfter = 30 * time.Second
)

// whileAlone runs work in one process at a time for each name and database,
// again and again until ctx ends. Work has the connection that holds the lock,
// and has to end when that breaks: another process takes over then.
func whileAlone(ctx context.Context, db *database.Database, name string, log hclog.Logger, work func(context.Context, *pgx.Conn) error) {
	var told time.Time
	var last string
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, lastPause) {
		began := time.Now()
		err := takeTurn(ctx, db, name, work)
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); text != last || time.Since(told) > logSameErrorAfter {
			log.Warn("events are waiting; trying again", "of", name, "error", err)
			last, told = text, time.Now()
		}
		if time.Since(began) > workedFor {
			pause = firstPause
		}
		wait(ctx, pause)
	}
}

func takeTurn(ctx context.Context, db *database.Database, name string, work func(context.Context, *pgx.Conn) error) error {
	conn, err := connect(ctx, db)
	if err != nil {
		return fmt.Errorf("connecting to the database: %w", err)
	}
	defer func() {
		// Also when ctx has ended, so that the next in line need not wait.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // a broken one is closed already
	}()
	for {
		held, err := tryLock(ctx, conn, name)
		if err != nil {
			return fmt.Errorf("asking for the turn: %w", err)
		}
		if held {
			return work(ctx, conn)
		}
		if !wait(ctx, standbyPoll) {
			return ctx.Err()
		}
	}
}

func connect(ctx context.Context, db *database.Database) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	return pgx.ConnectConfig(ctx, db.Pool().Config().ConnConfig)
}

func tryLock(ctx context.Context, conn *pgx.Conn, name string) (held bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, hashtext($2))", lockClass, name).Scan(&held)
	return held, err
}

// wait says whether d has passed, and not ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
