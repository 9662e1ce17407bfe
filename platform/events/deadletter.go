package events

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

const (
	// maxError bounds what is kept of an error, in bytes.
	maxError = 4 << 10
	maxPage  = 1000
)

// setAside puts an event where it blocks nothing and can be looked at.
func (c *Consumer) setAside(ctx context.Context, d *delivery, why error) error {
	err := c.db.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		fresh, err := c.note(ctx, tx, d)
		if err != nil || !fresh {
			return err
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO dead_letters (consumer, event_id, subject, key, payload, traceparent, event_time, attempts, error, create_time)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now())`,
			c.cfg.Name, d.ID, d.Subject, printable(d.Key), d.Payload, printable(d.trace), d.Time, max(1, d.failures), printable(why.Error()))
		return err
	})
	if err != nil {
		return fmt.Errorf("setting an event aside that failed with %q: %w", why.Error(), err)
	}
	c.count("set_aside")
	c.log.Error("set an event aside", "event", d.ID, "subject", d.Subject, "key", d.Key, "attempts", d.failures, "error", why)
	return nil
}

// printable is text that Postgres takes.
func printable(text string) string {
	if len(text) > maxError {
		text = text[:maxError]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// DeadLetters lists what this consumer has set aside, in the order of the
// events' IDs, which is that of time: at most limit (1 to 1000) of those after
// the given ID, "" for the first.
func (c *Consumer) DeadLetters(ctx context.Context, after string, limit int) ([]DeadLetter, error) {
	var list []DeadLetter
	err := c.db.Read(ctx, func(ctx context.Context) error {
		rows, err := c.db.Pool().Query(ctx, `
			SELECT event_id, consumer, subject, key, payload, event_time, create_time, attempts, error FROM dead_letters
			WHERE consumer = $1 AND event_id > $2 ORDER BY event_id LIMIT $3`, c.cfg.Name, after, min(max(limit, 1), maxPage))
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing what is set aside: %w", err)
	}
	return list, nil
}

// Replay handles an event that was set aside, and on success it is no longer.
// Otherwise it stays, with the new error, which is returned. It comes after
// later events of its key. ErrNoDeadLetter says that there is none.
func (c *Consumer) Replay(ctx context.Context, id string) error {
	var failure error
	err := c.db.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		e, trace := Event{ID: id}, ""
		err := tx.QueryRow(ctx, `
			SELECT subject, key, payload, traceparent, event_time FROM dead_letters
			WHERE consumer = $1 AND event_id = $2 FOR UPDATE`, c.cfg.Name, id).
			Scan(&e.Subject, &e.Key, &e.Payload, &trace, &e.Time)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNoDeadLetter
		}
		if err != nil {
			return err
		}
		if failure = c.call(ctx, tx, e, trace); failure != nil {
			return failure
		}
		_, err = tx.Exec(ctx, "DELETE FROM dead_letters WHERE consumer = $1 AND event_id = $2", c.cfg.Name, id)
		return err
	})
	if err != nil {
		err = fmt.Errorf("replaying event %s: %w", id, err)
	}
	if failure == nil {
		return err
	}
	return errors.Join(err, c.failedAgain(ctx, id, failure))
}

func (c *Consumer) failedAgain(ctx context.Context, id string, why error) error {
	err := c.db.Call(ctx, func(ctx context.Context) error {
		_, err := c.db.Pool().Exec(ctx, `
			UPDATE dead_letters SET attempts = attempts + 1, error = $3
			WHERE consumer = $1 AND event_id = $2`, c.cfg.Name, id, printable(why.Error()))
		return err
	})
	if err != nil {
		return fmt.Errorf("noting that event %s failed again: %w", id, err)
	}
	return nil
}

// Discard forgets an event that was set aside, for good. ErrNoDeadLetter says
// that there is none.
func (c *Consumer) Discard(ctx context.Context, id string) error {
	err := c.db.Call(ctx, func(ctx context.Context) error {
		tag, err := c.db.Pool().Exec(ctx, "DELETE FROM dead_letters WHERE consumer = $1 AND event_id = $2", c.cfg.Name, id)
		if err == nil && tag.RowsAffected() == 0 {
			return ErrNoDeadLetter
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("discarding event %s: %w", id, err)
	}
	return nil
}
