package database

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Pipeline runs the statements of one transaction. Those for which nobody waits go to
// the server together with the next that has an answer, which saves a round trip for
// each: they take effect in the order in which they were made, and what is wrong with
// one comes as the error of the next, or of Flush. It is what sqlc's queries need.
type Pipeline struct {
	tx      pgx.Tx
	waiting []*pgx.QueuedQuery
}

// Executor runs statements that answer nothing: a pgx.Tx, a Pipeline, or Later's.
type Executor interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// TransactPipelined is Transact with a Pipeline, whose last statements are sent before
// the commit.
func (d *Database) TransactPipelined(ctx context.Context, use func(context.Context, *Pipeline) error) error {
	return d.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		p := &Pipeline{tx: tx}
		if err := use(ctx, p); err != nil {
			return err
		}
		return p.Flush(ctx)
	})
}

// Later is the same transaction for statements whose answers nobody waits for: Exec
// returns at once, without an error and with an empty tag.
func (p *Pipeline) Later() *Later { return &Later{p} }

// Later is made by Pipeline.Later.
type Later struct{ *Pipeline }

// Exec has a statement sent with the next one that is waited for.
func (l *Later) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	l.waiting = append(l.waiting, &pgx.QueuedQuery{SQL: sql, Arguments: args})
	return pgconn.CommandTag{}, nil
}

// Flush sends what waits. The error is of the first statement that failed.
func (p *Pipeline) Flush(ctx context.Context) error {
	if len(p.waiting) == 0 {
		return nil
	}
	return p.send(ctx).Close()
}

// Exec runs a statement and those that wait.
func (p *Pipeline) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if len(p.waiting) == 0 {
		return p.tx.Exec(ctx, sql, args...)
	}
	results := p.send(ctx, &pgx.QueuedQuery{SQL: sql, Arguments: args})
	tag, err := results.Exec()
	if closed := results.Close(); err == nil {
		err = closed
	}
	return tag, err
}

// Query runs a query and the statements that wait.
func (p *Pipeline) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if len(p.waiting) == 0 {
		return p.tx.Query(ctx, sql, args...)
	}
	results := p.send(ctx, &pgx.QueuedQuery{SQL: sql, Arguments: args})
	rows, err := results.Query()
	if err != nil {
		_ = results.Close() // says the same
		return rows, err
	}
	return &lastRows{rows, results}, nil
}

// QueryRow runs a query for one row and the statements that wait.
func (p *Pipeline) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if len(p.waiting) == 0 {
		return p.tx.QueryRow(ctx, sql, args...)
	}
	results := p.send(ctx, &pgx.QueuedQuery{SQL: sql, Arguments: args})
	return &lastRow{results.QueryRow(), results}
}

// SendBatch sends the statements that wait and then those of batch, whose results it
// returns.
func (p *Pipeline) SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults {
	if len(p.waiting) == 0 {
		return p.tx.SendBatch(ctx, batch)
	}
	return p.send(ctx, batch.QueuedQueries...)
}

// send sends what waits, and then some more, whose results it returns. An error of
// those before is also that of each of the results.
func (p *Pipeline) send(ctx context.Context, then ...*pgx.QueuedQuery) pgx.BatchResults {
	before := len(p.waiting)
	batch := &pgx.Batch{QueuedQueries: append(p.waiting, then...)}
	p.waiting = nil
	results := p.tx.SendBatch(ctx, batch)
	for range before {
		if _, err := results.Exec(); err != nil {
			break
		}
	}
	return results
}

// lastRows are the rows of a batch's last query; the connection is free when they are
// closed.
type lastRows struct {
	pgx.Rows
	results pgx.BatchResults
}

func (r *lastRows) Close() {
	r.Rows.Close()
	_ = r.results.Close() // an error of the rows is in Err
}

// lastRow is the row of a batch's last query.
type lastRow struct {
	row     pgx.Row
	results pgx.BatchResults
}

func (r *lastRow) Scan(into ...any) error {
	err := r.row.Scan(into...)
	if closed := r.results.Close(); err == nil {
		err = closed
	}
	return err
}
