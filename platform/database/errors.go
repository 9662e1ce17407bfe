package database

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/marquee-ads/marquee/platform/fault"
)

// ErrUnavailable is what callers are told while the database is away.
var ErrUnavailable = fault.New(fault.Unavailable, "DATABASE_UNAVAILABLE", "the database cannot be reached at the moment").
	WithRetryAfter(time.Second)

// Postgres's error codes that mean something here (its manual, appendix A).
const (
	codeUniqueViolation      = "23505"
	codeForeignKeyViolation  = "23503"
	codeCheckViolation       = "23514"
	codeExclusionViolation   = "23P01"
	codeInvalidPassword      = "28P01"
	codeInvalidAuthorization = "28000"
	codeIdleInTransaction    = "25P03"
	codeReadOnly             = "25006"
	codeSerialization        = "40001"
	codeDeadlock             = "40P01"
	codeTooManyConnections   = "53300"
	codeLockNotAvailable     = "55P03"
	codeQueryCanceled        = "57014"
	codeAdminShutdown        = "57P01"
	codeCrashShutdown        = "57P02"
	codeCannotConnectNow     = "57P03"
	classConnection          = "08"
)

// Violated is the name of the constraint that an error says was violated; empty
// when it says something else.
func Violated(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return ""
	}
	switch pg.Code {
	case codeUniqueViolation, codeForeignKeyViolation, codeCheckViolation, codeExclusionViolation:
		return pg.ConstraintName
	}
	return ""
}

// translate makes ErrUnavailable of everything that trying again can help. ctx
// is the caller's: when it has ended, that is the reason, whatever the database
// said.
func translate(ctx context.Context, err error) error {
	var (
		pg      *pgconn.PgError
		connect *pgconn.ConnectError
	)
	switch _, known := fault.From(err); {
	case err == nil || known:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	case errors.As(err, &pg):
		if passing(pg.Code) {
			return ErrUnavailable.Because(err)
		}
		return err
	case broke(err), errors.As(err, &connect),
		// The time for one call has passed.
		errors.Is(err, context.DeadlineExceeded), pgconn.Timeout(err):
		return ErrUnavailable.Because(err)
	default:
		return err
	}
}

func passing(code string) bool {
	switch code {
	case codeIdleInTransaction, codeReadOnly, codeSerialization, codeDeadlock, codeTooManyConnections, codeLockNotAvailable,
		codeQueryCanceled, codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		return true
	}
	return strings.HasPrefix(code, classConnection)
}

// broke says whether an established connection ended under its use. Whether
// the use had an effect is not known then, whatever pgconn.SafeToRetry says of
// an error that another one caused.
func broke(err error) bool {
	var (
		pg      *pgconn.PgError
		connect *pgconn.ConnectError
		network net.Error
	)
	switch {
	case err == nil, errors.As(err, &connect), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &pg):
		return pg.Code == codeAdminShutdown || pg.Code == codeCrashShutdown
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &network) && !network.Timeout() || pgconn.SafeToRetry(err)
}
