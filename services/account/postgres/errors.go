package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/account"
)

// Postgres's error codes that mean something here (its manual, appendix A).
const (
	codeUniqueViolation      = "23505"
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

// translate is the one place that turns what goes wrong with the database into
// what the domain knows. ctx is the caller's: when it has ended, that is the
// reason, whatever the database said.
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
		return translateCode(pg, err)
	case none(err):
		return account.ErrNotFound.Because(err)
	case broke(err), errors.As(err, &connect),
		// The time for one call has passed.
		errors.Is(err, context.DeadlineExceeded), pgconn.Timeout(err):
		return account.ErrDatabaseUnavailable.Because(err)
	default:
		return err
	}
}

// none says whether a query found no row.
func none(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

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

func translateCode(pg *pgconn.PgError, err error) error {
	switch pg.Code {
	case codeUniqueViolation:
		if pg.ConstraintName == "accounts_name_key_unique" {
			return account.ErrNameTaken.Because(err)
		}
		return err
	case codeIdleInTransaction, codeReadOnly, codeSerialization, codeDeadlock, codeTooManyConnections, codeLockNotAvailable,
		codeQueryCanceled, codeAdminShutdown, codeCrashShutdown, codeCannotConnectNow:
		return account.ErrDatabaseUnavailable.Because(err)
	}
	if strings.HasPrefix(pg.Code, classConnection) {
		return account.ErrDatabaseUnavailable.Because(err)
	}
	return err
}
