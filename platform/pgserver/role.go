package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"
)

// superuser owns the cluster. No rule of pg_hba.conf lets it in: it exists for
// single-user mode alone.
const superuser = "postgres"

// readPassword reads the first line of the password file. Other than in a test
// server, whose rules ask for no password, there must be one.
func readPassword(cfg Config) (string, error) {
	if cfg.PasswordFile == "" && cfg.Test {
		return "", nil
	}
	text, err := os.ReadFile(cfg.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("reading the role's password: %w", err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	switch {
	case password == "":
		return "", fmt.Errorf("the password file %s is empty: put the role's password on its first line", cfg.PasswordFile)
	case strings.ContainsFunc(password, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }):
		// SCRAM normalises anything else (SASLprep), and single-user mode ends a
		// statement at the end of a line.
		return "", fmt.Errorf("the password in %s must be one line of printable ASCII", cfg.PasswordFile)
	}
	return password, nil
}

// ensureRole sees to the role, its password and its database in single-user
// mode: before Postgres listens, and with no superuser that could log in.
func (v volume) ensureRole(ctx context.Context, password string) error {
	role, database := identifier(v.cfg.Role), identifier(v.cfg.Database)
	attributes := " WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
	if password != "" {
		attributes += " PASSWORD " + literal(password)
	}
	create := fmt.Sprintf(`DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %s) THEN CREATE ROLE %s; END IF; END $do$;`, literal(v.cfg.Role), role)
	exists := fmt.Sprintf(`SELECT datname AS found FROM pg_catalog.pg_database WHERE datname = %s;`, literal(v.cfg.Database))
	out, err := v.single(ctx, create, "ALTER ROLE "+role+attributes+";", exists)
	if err != nil {
		return fmt.Errorf("making role %s: %w", v.cfg.Role, err)
	}
	own := "ALTER DATABASE " + database + " OWNER TO " + role + ";"
	if !strings.Contains(out, fmt.Sprintf("found = %q", v.cfg.Database)) {
		own = "CREATE DATABASE " + database + " OWNER " + role + " TEMPLATE template0 ENCODING 'UTF8';"
	}
	if _, err := v.single(ctx, own); err != nil {
		return fmt.Errorf("making database %s: %w", v.cfg.Database, err)
	}
	return nil
}

// single runs statements, a line each, in single-user mode and returns what
// they printed. It ends at the first one that fails.
func (v volume) single(ctx context.Context, statements ...string) (string, error) {
	args := append([]string{"--single", "-D", v.data()}, v.settings()...)
	// A failing statement is never logged: it may hold the password.
	args = append(args, "-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "-c", "log_statement=none", superuser)
	cmd := v.command("postgres", args...)
	for _, s := range statements {
		if strings.ContainsAny(s, "\n\r") {
			return "", errors.New("a statement spans lines")
		}
	}
	cmd.Stdin = strings.NewReader(strings.Join(statements, "\n") + "\n")
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	if err := v.who.run(ctx, cmd); err != nil {
		return "", fmt.Errorf("running Postgres in single-user mode: %w: %s", err, bytes.TrimSpace(messages.Bytes()))
	}
	return out.String(), nil
}

func identifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
