-- What only a server has: roles, identity columns, the partitioned audit table, grants, row-level
-- security, and the views that analysts read. Runs as the migrating login, never as a service role.

-- Roles -----------------------------------------------------------------------------------------
-- They belong to the cluster: several databases may create them at the same moment, hence the two
-- conditions. They are members of nothing, so that none inherits what another may do.
DO $$
DECLARE
  service_role text;
  is_superuser boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
BEGIN
  FOREACH service_role IN ARRAY ARRAY['gary_owner', 'gary_app', 'gary_caller', 'gary_jobs', 'gary_analyst', 'gary_reporting'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOINHERIT', service_role);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL;
    END;
    -- An owner login that is no superuser must be able to become the roles, without inheriting them
    -- (except gary_owner, whose objects later migrations alter).
    IF NOT is_superuser THEN
      IF current_setting('server_version_num')::int >= 160000 THEN
        EXECUTE format('GRANT %I TO CURRENT_USER WITH INHERIT %s, SET TRUE', service_role,
                       CASE service_role WHEN 'gary_owner' THEN 'TRUE' WHEN 'gary_reporting' THEN 'TRUE' ELSE 'FALSE' END);
      ELSE
        EXECUTE format('GRANT %I TO CURRENT_USER', service_role);
      END IF;
    END IF;
  END LOOP;
END $$;

CREATE SCHEMA gary;
CREATE SCHEMA reports;
GRANT USAGE, CREATE ON SCHEMA public, gary TO gary_owner;
GRANT USAGE, CREATE ON SCHEMA reports TO gary_reporting;
GRANT USAGE ON SCHEMA public, gary TO gary_app, gary_caller, gary_jobs, gary_reporting;
GRANT USAGE ON SCHEMA reports TO gary_analyst;

-- Who asks --------------------------------------------------------------------------------------
-- The settings are '' and not NULL after the transaction that set them has ended. The bodies are
-- parsed now (BEGIN ATOMIC), so that no search_path of a caller can change what they mean.
CREATE FUNCTION gary.user_id() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT nullif(current_setting('app.user_id', true), '')::integer;
END;

CREATE FUNCTION gary.role() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT nullif(current_setting('app.role', true), '');
END;

-- user:7, api_key:3 or system.
CREATE FUNCTION gary.actor() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT nullif(current_setting('app.actor', true), '');
END;

CREATE FUNCTION gary.on_behalf_of() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT nullif(current_setting('app.on_behalf_of', true), '')::integer;
END;

-- A session holds every scope ('*'), a key the ones it was given; no identity holds none.
CREATE FUNCTION gary.holds_scope(scope text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT coalesce(current_setting('app.scopes', true), '') = '*'
      OR scope = ANY (string_to_array(coalesce(current_setting('app.scopes', true), ''), ' '));
END;

CREATE FUNCTION gary.rank(role text) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT CASE role WHEN 'system' THEN 4 WHEN 'owner' THEN 3 WHEN 'admin' THEN 2 ELSE 1 END;
END;

-- Strictly lower rank; owners may act on owners. Programs by scope, on those below an admin.
CREATE FUNCTION gary.manages(role text, scope text) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT coalesce(gary.holds_scope(scope) AND CASE gary.role()
    WHEN 'service' THEN gary.rank(role) < 2
    WHEN 'owner' THEN gary.rank(role) <= 3
    ELSE gary.rank(gary.role()) >= 2 AND gary.rank(role) < gary.rank(gary.role())
  END, false);
END;

CREATE FUNCTION gary.reads_shared_config() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT coalesce(gary.holds_scope('config:read')
    AND gary.role() IN ('owner', 'admin', 'user', 'subordinate_agent', 'auditor', 'service'), false);
END;

CREATE FUNCTION gary.writes_shared_config() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT coalesce(gary.holds_scope('config:write') AND gary.role() IN ('owner', 'admin', 'service'), false);
END;

CREATE FUNCTION gary.reads_all_audit() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT coalesce(gary.holds_scope('audit:read') AND gary.role() IN ('owner', 'admin', 'auditor', 'service'), false);
END;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA gary FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA gary TO gary_app, gary_caller, gary_jobs;

-- Ids that nobody can forge ---------------------------------------------------------------------
ALTER TABLE auth_users ALTER COLUMN id DROP DEFAULT;
DROP SEQUENCE auth_users_id_seq;
ALTER TABLE auth_users ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY;
ALTER TABLE auth_sessions ALTER COLUMN id DROP DEFAULT;
DROP SEQUENCE auth_sessions_id_seq;
ALTER TABLE auth_sessions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY;
ALTER TABLE auth_oauth_tokens ALTER COLUMN id DROP DEFAULT;
DROP SEQUENCE auth_oauth_tokens_id_seq;
ALTER TABLE auth_oauth_tokens ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY;
ALTER TABLE auth_api_keys ALTER COLUMN id DROP DEFAULT;
DROP SEQUENCE auth_api_keys_id_seq;
ALTER TABLE auth_api_keys ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY;
ALTER TABLE config_revisions ALTER COLUMN revision DROP DEFAULT;
DROP SEQUENCE config_revisions_revision_seq;
ALTER TABLE config_revisions ALTER COLUMN revision ADD GENERATED ALWAYS AS IDENTITY;

ALTER TABLE auth_users ADD CONSTRAINT auth_users_role_check
  CHECK (role IN ('owner', 'admin', 'user', 'guest', 'subordinate_agent', 'analyst', 'auditor', 'service'));
ALTER TABLE config_entries ADD CONSTRAINT config_entries_scope_check
  CHECK (scope IN ('global', 'environment', 'service', 'user'));
ALTER TABLE auth_setup_tokens ADD CONSTRAINT auth_setup_tokens_one_row CHECK (id = 1);

-- A revision's place in commit order: a sequence is not that order.
ALTER TABLE config_revisions ADD COLUMN tx xid8 NOT NULL DEFAULT pg_current_xact_id();

-- The audit trail, by month of arrival ----------------------------------------------------------
ALTER TABLE audit_events RENAME TO audit_events_plain;
CREATE TABLE audit_events (LIKE audit_events_plain INCLUDING ALL) PARTITION BY RANGE (received_at);
ALTER SEQUENCE audit_events_id_seq OWNED BY audit_events.id;
DROP TABLE audit_events_plain;
ALTER INDEX audit_events_actor_id_received_at_id_idx1 RENAME TO audit_events_actor_id_received_at_id_idx;
ALTER INDEX audit_events_event_type_received_at_id_idx1 RENAME TO audit_events_event_type_received_at_id_idx;
ALTER INDEX audit_events_session_id_received_at_id_idx1 RENAME TO audit_events_session_id_received_at_id_idx;
ALTER INDEX audit_events_user_id_received_at_id_idx1 RENAME TO audit_events_user_id_received_at_id_idx;
ALTER INDEX audit_events_pkey1 RENAME TO audit_events_pkey;
ALTER TABLE audit_events ADD COLUMN tx xid8 NOT NULL DEFAULT pg_current_xact_id();

-- Makes the partitions of this month and the next ones; idempotent, and waits for nobody: a lock on
-- the parent would stop every writer, so an ATTACH follows the creation.
CREATE FUNCTION gary.keep_audit_partitions(months_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  month_start timestamp;
  child text;
  made integer := 0;
BEGIN
  IF months_ahead NOT BETWEEN 0 AND 24 THEN
    RAISE EXCEPTION 'months_ahead is from 0 to 24' USING ERRCODE = '22023';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('gary.keep_audit_partitions'));
  FOR step IN 0 .. months_ahead LOOP
    month_start := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => step);
    child := 'audit_events_' || to_char(month_start, '"y"YYYY"m"MM');
    CONTINUE WHEN to_regclass('public.' || child) IS NOT NULL;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.audit_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', child);
    EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', child);
    EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', child);
    EXECUTE format('ALTER TABLE public.audit_events ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                   child, month_start AT TIME ZONE 'UTC', (month_start + interval '1 month') AT TIME ZONE 'UTC');
    made := made + 1;
  END LOOP;
  RETURN made;
END $$;
REVOKE ALL ON FUNCTION gary.keep_audit_partitions(integer) FROM PUBLIC, gary_app, gary_caller;
GRANT EXECUTE ON FUNCTION gary.keep_audit_partitions(integer) TO gary_jobs;

-- Owner, and row-level security on everything ---------------------------------------------------
ALTER TABLE audit_events OWNER TO gary_owner;
ALTER FUNCTION gary.keep_audit_partitions(integer) OWNER TO gary_owner;
CREATE TABLE audit_events_default PARTITION OF audit_events DEFAULT;
ALTER TABLE audit_events_default OWNER TO gary_owner;
SELECT gary.keep_audit_partitions(3);

DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['auth_users', 'auth_sessions', 'auth_oauth_tokens', 'auth_api_keys', 'auth_throttle',
    'auth_setup_tokens', 'config_entries', 'config_revisions', 'audit_events', 'audit_events_default',
    'audit_event_ids', 'idempotency_keys'] LOOP
    EXECUTE format('ALTER TABLE public.%I OWNER TO gary_owner', name);
    EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', name);
  END LOOP;
END $$;
ALTER SCHEMA gary OWNER TO gary_owner;

-- gary_app: a connection before it is known who asks ---------------------------------------------
GRANT SELECT (id, username, username_key, password_hash, role, is_active, must_change_password, created_at, updated_at,
  last_login, password_changed_at, failed_login_attempts, locked_until, version) ON auth_users TO gary_app;
GRANT UPDATE (last_login, failed_login_attempts, locked_until) ON auth_users TO gary_app;
CREATE POLICY app_reads ON auth_users FOR SELECT TO gary_app USING (true);
CREATE POLICY app_keeps_books ON auth_users FOR UPDATE TO gary_app USING (true) WITH CHECK (true);

GRANT SELECT ON auth_sessions TO gary_app;
GRANT UPDATE (last_activity) ON auth_sessions TO gary_app;
CREATE POLICY app_reads ON auth_sessions FOR SELECT TO gary_app USING (true);
CREATE POLICY app_touches ON auth_sessions FOR UPDATE TO gary_app USING (true) WITH CHECK (true);

GRANT SELECT ON auth_api_keys TO gary_app;
GRANT UPDATE (last_used_at) ON auth_api_keys TO gary_app;
CREATE POLICY app_reads ON auth_api_keys FOR SELECT TO gary_app USING (true);
CREATE POLICY app_touches ON auth_api_keys FOR UPDATE TO gary_app USING (true) WITH CHECK (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON auth_throttle TO gary_app;
CREATE POLICY app_counts ON auth_throttle TO gary_app USING (true) WITH CHECK (true);

-- What the service itself tells the audit trail (a failed sign-in has no caller). No reading.
GRANT INSERT (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name, on_behalf_of, action,
  target, user_id, agent_id, session_id, request_id, trace_id, event) ON audit_events TO gary_app, gary_caller;
GRANT USAGE ON SEQUENCE audit_events_id_seq TO gary_app, gary_caller;
GRANT INSERT (event_id, actor, on_behalf_of, body_hash) ON audit_event_ids TO gary_app, gary_caller;
CREATE POLICY app_appends ON audit_events FOR INSERT TO gary_app
  WITH CHECK (actor_type = 'system' AND actor_id IS NULL AND source = 'service' AND on_behalf_of IS NULL);
CREATE POLICY app_appends ON audit_event_ids FOR INSERT TO gary_app WITH CHECK (actor = 'system' AND on_behalf_of IS NULL);

-- gary_caller: a statement with its caller's identity ---------------------------------------------
GRANT SELECT (id, username, username_key, role, is_active, must_change_password, created_at, updated_at, last_login,
  password_changed_at, failed_login_attempts, locked_until, version) ON auth_users TO gary_caller;
GRANT INSERT (username, username_key, password_hash, role, must_change_password) ON auth_users TO gary_caller;
GRANT UPDATE (password_hash, role, is_active, must_change_password, updated_at, last_login, password_changed_at,
  failed_login_attempts, locked_until, version) ON auth_users TO gary_caller;
CREATE POLICY caller_reads ON auth_users FOR SELECT TO gary_caller
  USING (id = (SELECT gary.user_id()) OR gary.manages(role, 'users:read') OR (SELECT gary.role() = 'system'));
CREATE POLICY caller_creates ON auth_users FOR INSERT TO gary_caller WITH CHECK (gary.manages(role, 'users:write'));
-- One's own row may change, but not its role and not into inactivity.
CREATE POLICY caller_updates ON auth_users FOR UPDATE TO gary_caller
  USING (id = (SELECT gary.user_id()) OR gary.manages(role, 'users:write'))
  WITH CHECK (CASE WHEN id = (SELECT gary.user_id()) THEN role = (SELECT gary.role()) AND is_active
              ELSE gary.manages(role, 'users:write') END);

GRANT SELECT (id, user_id, created_at, expires_at, last_activity, ip_address, user_agent, authenticated_at),
  INSERT (session_token, user_id, expires_at, ip_address, user_agent),
  UPDATE (authenticated_at), DELETE ON auth_sessions TO gary_caller;
-- Only a session, whose scope is everything, opens sessions and makes keys: a key does neither.
CREATE POLICY caller_own ON auth_sessions TO gary_caller
  USING (user_id = (SELECT gary.user_id()))
  WITH CHECK (user_id = (SELECT gary.user_id()) AND (SELECT gary.holds_scope('*')));
CREATE POLICY caller_sees_managed ON auth_sessions FOR SELECT TO gary_caller
  USING (EXISTS (SELECT FROM auth_users u WHERE u.id = user_id AND gary.manages(u.role, 'users:read')));
CREATE POLICY caller_ends_managed ON auth_sessions FOR DELETE TO gary_caller
  USING (EXISTS (SELECT FROM auth_users u WHERE u.id = user_id AND gary.manages(u.role, 'users:write')));

-- The first owner is made by the service itself.
GRANT SELECT, INSERT, DELETE ON auth_setup_tokens TO gary_caller;
CREATE POLICY system_sets_up ON auth_setup_tokens TO gary_caller
  USING ((SELECT gary.role()) = 'system') WITH CHECK ((SELECT gary.role()) = 'system');

GRANT SELECT (id, user_id, provider, expires_at, created_at), DELETE ON auth_oauth_tokens TO gary_caller;
CREATE POLICY caller_own ON auth_oauth_tokens TO gary_caller
  USING (user_id = (SELECT gary.user_id())) WITH CHECK (user_id = (SELECT gary.user_id()));

GRANT SELECT (id, user_id, name, prefix, scopes, created_at, expires_at, last_used_at),
  INSERT (user_id, name, prefix, key_hash, scopes, expires_at), DELETE ON auth_api_keys TO gary_caller;
CREATE POLICY caller_own ON auth_api_keys TO gary_caller
  USING (user_id = (SELECT gary.user_id()))
  WITH CHECK (user_id = (SELECT gary.user_id()) AND (SELECT gary.holds_scope('*')));
CREATE POLICY caller_managed ON auth_api_keys TO gary_caller
  USING (EXISTS (SELECT FROM auth_users u WHERE u.id = user_id AND gary.manages(u.role, 'users:read')))
  WITH CHECK ((SELECT gary.holds_scope('*'))
    AND EXISTS (SELECT FROM auth_users u WHERE u.id = user_id AND gary.manages(u.role, 'users:write')));

GRANT SELECT, INSERT (scope, owner, environment, key, value, version, secret_paths, tags, description, updated_by),
  UPDATE (value, version, secret_paths, tags, description, deleted, created_at, updated_at, updated_by) ON config_entries TO gary_caller;
CREATE POLICY caller_reads ON config_entries FOR SELECT TO gary_caller
  USING (CASE scope WHEN 'user' THEN owner = (SELECT gary.user_id()::text) AND (SELECT gary.holds_scope('config:read'))
         ELSE (SELECT gary.reads_shared_config()) END);
CREATE POLICY caller_creates ON config_entries FOR INSERT TO gary_caller
  WITH CHECK (CASE scope WHEN 'user' THEN owner = (SELECT gary.user_id()::text) AND (SELECT gary.holds_scope('config:write'))
              ELSE (SELECT gary.writes_shared_config()) END);
CREATE POLICY caller_updates ON config_entries FOR UPDATE TO gary_caller
  USING (CASE scope WHEN 'user' THEN owner = (SELECT gary.user_id()::text) AND (SELECT gary.holds_scope('config:write'))
         ELSE (SELECT gary.writes_shared_config()) END);

GRANT SELECT, INSERT (scope, owner, environment, key, version, operation, value, secret_paths, tags, description,
  actor_type, actor_id, actor_name, request_id) ON config_revisions TO gary_caller;
CREATE POLICY caller_reads ON config_revisions FOR SELECT TO gary_caller
  USING (CASE scope WHEN 'user' THEN owner = (SELECT gary.user_id()::text) AND (SELECT gary.holds_scope('config:read'))
         ELSE (SELECT gary.reads_shared_config()) END);
CREATE POLICY caller_appends ON config_revisions FOR INSERT TO gary_caller
  WITH CHECK ((SELECT gary.actor()) = actor_type || coalesce(':' || actor_id, '')
    AND CASE scope WHEN 'user' THEN owner = (SELECT gary.user_id()::text) AND (SELECT gary.holds_scope('config:write'))
        ELSE (SELECT gary.writes_shared_config()) END);

-- An event names the one who sends it: the columns must say what the identity says.
GRANT SELECT ON audit_events, audit_event_ids TO gary_caller;
CREATE POLICY caller_appends ON audit_events FOR INSERT TO gary_caller
  WITH CHECK ((SELECT gary.actor()) = actor_type || coalesce(':' || actor_id, '')
    AND on_behalf_of IS NOT DISTINCT FROM (SELECT gary.on_behalf_of()));
CREATE POLICY caller_reads ON audit_events FOR SELECT TO gary_caller
  USING ((SELECT gary.reads_all_audit())
    OR ((SELECT gary.holds_scope('audit:read'))
      AND ((actor_type = 'user' AND actor_id = (SELECT gary.user_id()))
        OR (SELECT gary.actor()) = actor_type || coalesce(':' || actor_id, '')
        OR on_behalf_of = (SELECT gary.user_id()))));
CREATE POLICY caller_appends ON audit_event_ids FOR INSERT TO gary_caller
  WITH CHECK (actor = (SELECT gary.actor()) AND on_behalf_of IS NOT DISTINCT FROM (SELECT gary.on_behalf_of()));
-- One's own ids are visible without a scope: a repeated event must be known as one.
CREATE POLICY caller_reads ON audit_event_ids FOR SELECT TO gary_caller
  USING (actor = (SELECT gary.actor()) OR (SELECT gary.reads_all_audit())
    OR ((SELECT gary.holds_scope('audit:read'))
      AND (actor = (SELECT 'user:' || gary.user_id()) OR on_behalf_of = (SELECT gary.user_id()))));

GRANT SELECT, INSERT ON idempotency_keys TO gary_caller;
CREATE POLICY caller_own ON idempotency_keys TO gary_caller
  USING (caller = (SELECT gary.actor())) WITH CHECK (caller = (SELECT gary.actor()));

-- gary_jobs: what runs without a caller -----------------------------------------------------------
GRANT SELECT ON audit_events, audit_event_ids TO gary_jobs;
GRANT SELECT (id, expires_at, last_activity), DELETE ON auth_sessions TO gary_jobs;
GRANT SELECT (bucket, window_start, locked_until), DELETE ON auth_throttle TO gary_jobs;
GRANT SELECT (caller, route, key, created_at), DELETE ON idempotency_keys TO gary_jobs;
GRANT DELETE ON audit_event_ids TO gary_jobs;
CREATE POLICY jobs_read ON audit_events FOR SELECT TO gary_jobs USING (true);
CREATE POLICY jobs_prune ON audit_event_ids TO gary_jobs USING (true) WITH CHECK (false);
CREATE POLICY jobs_prune ON auth_sessions TO gary_jobs USING (true) WITH CHECK (false);
CREATE POLICY jobs_prune ON auth_throttle TO gary_jobs USING (true) WITH CHECK (false);
CREATE POLICY jobs_prune ON idempotency_keys TO gary_jobs USING (true) WITH CHECK (false);

-- gary_reporting owns the views; gary_analyst reads them and nothing else --------------------------
GRANT SELECT (received_at, event_type, action, actor_type, actor_id, actor_name) ON audit_events TO gary_reporting;
CREATE POLICY reporting_reads ON audit_events FOR SELECT TO gary_reporting USING (event_type = 'authentication');

CREATE VIEW reports.logins WITH (security_barrier) AS
  SELECT received_at,
         (received_at AT TIME ZONE 'UTC')::date AS day,
         CASE action WHEN 'auth.login' THEN 'succeeded' ELSE 'failed' END AS outcome,
         actor_id AS user_id,
         actor_name AS username
    FROM public.audit_events
   WHERE event_type = 'authentication' AND action IN ('auth.login', 'auth.login_failed');
ALTER VIEW reports.logins OWNER TO gary_reporting;
ALTER SCHEMA reports OWNER TO gary_reporting;
GRANT SELECT ON reports.logins TO gary_analyst;
