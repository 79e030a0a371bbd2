-- Throttling of sign-ins, adoption of the older application's tables, and narrower rights of keys.

ALTER TABLE auth_adoption ADD CONSTRAINT auth_adoption_one_row CHECK (id = 1);
ALTER TABLE auth_adoption OWNER TO gary_owner;
ALTER TABLE auth_adoption ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth_adoption FORCE ROW LEVEL SECURITY;
-- Written by the migrating login alone.
GRANT SELECT ON auth_adoption TO gary_app;
CREATE POLICY app_reads ON auth_adoption FOR SELECT TO gary_app USING (true);

-- Throttling ------------------------------------------------------------------------------------
-- The buckets of a try: with `at_address` the first one is the account at this address. Whoever begins a try
-- holds a place until it is told how the try ended, so that tries at once are not more than tries one by one.
CREATE FUNCTION gary.lock_buckets(buckets text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  LOOP
    -- In one order for all, or two tries would wait for each other.
    INSERT INTO public.auth_throttle (bucket) SELECT b FROM unnest(buckets) b ORDER BY b ON CONFLICT (bucket) DO NOTHING;
    PERFORM FROM public.auth_throttle WHERE bucket = ANY (buckets) ORDER BY bucket FOR UPDATE;
    -- One may have been pruned in between.
    EXIT WHEN (SELECT count(*) FROM public.auth_throttle WHERE bucket = ANY (buckets)) = cardinality(buckets);
  END LOOP;
END $$;

CREATE FUNCTION gary.lock_time(seconds integer, lockouts integer) RETURNS interval LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT least(make_interval(secs => seconds * 2.0 ^ least(lockouts, 20)), interval '1 day');
END;

-- 0 when the try may go on, and it then counts until gary.end_attempt; else the seconds to wait.
CREATE FUNCTION gary.begin_attempt(buckets text[], at_address boolean, limits integer[], window_seconds integer[],
  lock_seconds integer[]) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t timestamptz;
  b public.auth_throttle;
  aged public.auth_throttle[] := '{}';
  is_known boolean := false;
  wait integer;
  verdict integer := 0;
BEGIN
  PERFORM gary.lock_buckets(buckets);
  t := clock_timestamp();
  FOR i IN 1 .. cardinality(buckets) LOOP
    SELECT * INTO STRICT b FROM public.auth_throttle WHERE bucket = buckets[i];
    -- Who began and never told the end may have failed.
    IF b.pending > 0 AND b.pending_since < t - interval '1 minute' THEN
      b.failures := b.failures + b.pending;
      b.pending := 0;
    END IF;
    IF b.locked_until <= t OR b.window_start < t - make_interval(secs => window_seconds[i]) AND b.locked_until IS NULL THEN
      b.failures := 0;
      b.window_start := t;
      b.locked_until := NULL;
    END IF;
    IF b.touched_at < t - interval '1 day' THEN
      b.lockouts := 0;
    END IF;
    IF b.failures >= limits[i] AND b.locked_until IS NULL THEN
      b.locked_until := t + gary.lock_time(lock_seconds[i], b.lockouts);
      b.lockouts := b.lockouts + 1;
    END IF;
    -- When only tries under way fill it, their end is a moment away.
    wait := CASE WHEN b.locked_until IS NOT NULL THEN greatest(1, ceil(extract(epoch FROM b.locked_until - t))::integer)
                 WHEN b.failures + b.pending >= limits[i] THEN 1
                 ELSE 0 END;
    IF i = 1 AND at_address THEN
      is_known := coalesce(b.succeeded_at > t - interval '90 days', false);
      verdict := wait;
    ELSIF NOT is_known THEN
      verdict := greatest(verdict, wait);
    END IF;
    aged := aged || b;
  END LOOP;
  FOREACH b IN ARRAY aged LOOP
    UPDATE public.auth_throttle
       SET failures = b.failures, window_start = b.window_start, locked_until = b.locked_until, lockouts = b.lockouts,
           pending = b.pending + CASE verdict WHEN 0 THEN 1 ELSE 0 END,
           pending_since = CASE verdict WHEN 0 THEN t ELSE b.pending_since END, touched_at = t
     WHERE bucket = b.bucket;
  END LOOP;
  RETURN verdict;
END $$;

-- How a try ended: 'succeeded' clears the account at this address and no other bucket, 'failed' counts in each,
-- 'void' in none (the password was never looked at).
CREATE FUNCTION gary.end_attempt(buckets text[], at_address boolean, limits integer[], lock_seconds integer[],
  outcome text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t timestamptz;
BEGIN
  PERFORM gary.lock_buckets(buckets);
  t := clock_timestamp();
  UPDATE public.auth_throttle SET pending = greatest(pending - 1, 0), touched_at = t WHERE bucket = ANY (buckets);
  IF outcome = 'failed' THEN
    UPDATE public.auth_throttle a
       SET failures = a.failures + 1,
           locked_until = CASE WHEN a.locked_until IS NULL AND a.failures + 1 >= r.allowed
                               THEN t + gary.lock_time(r.seconds, a.lockouts) ELSE a.locked_until END,
           lockouts = a.lockouts + CASE WHEN a.locked_until IS NULL AND a.failures + 1 >= r.allowed THEN 1 ELSE 0 END
      FROM unnest(buckets, limits, lock_seconds) AS r (bucket, allowed, seconds)
     WHERE a.bucket = r.bucket;
  ELSIF outcome = 'succeeded' AND at_address THEN
    UPDATE public.auth_throttle
       SET failures = 0, lockouts = 0, locked_until = NULL, window_start = t, succeeded_at = t
     WHERE bucket = buckets[1];
  END IF;
END $$;

REVOKE ALL ON FUNCTION gary.lock_buckets(text[]), gary.lock_time(integer, integer),
  gary.begin_attempt(text[], boolean, integer[], integer[], integer[]),
  gary.end_attempt(text[], boolean, integer[], integer[], text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gary.lock_buckets(text[]), gary.lock_time(integer, integer),
  gary.begin_attempt(text[], boolean, integer[], integer[], integer[]),
  gary.end_attempt(text[], boolean, integer[], integer[], text) TO gary_app;
ALTER FUNCTION gary.lock_buckets(text[]) OWNER TO gary_owner;
ALTER FUNCTION gary.lock_time(integer, integer) OWNER TO gary_owner;
ALTER FUNCTION gary.begin_attempt(text[], boolean, integer[], integer[], integer[]) OWNER TO gary_owner;
ALTER FUNCTION gary.end_attempt(text[], boolean, integer[], integer[], text) OWNER TO gary_owner;
GRANT SELECT (touched_at, succeeded_at) ON auth_throttle TO gary_jobs;

-- Rights ----------------------------------------------------------------------------------------
-- One's own row is for a session of one's own: a key, also one that acts on behalf, changes no password.
DROP POLICY caller_updates ON auth_users;
CREATE POLICY caller_updates ON auth_users FOR UPDATE TO gary_caller
  USING (id = (SELECT gary.user_id()) AND (SELECT gary.holds_scope('*')) OR gary.manages(role, 'users:write'))
  WITH CHECK (CASE WHEN id = (SELECT gary.user_id())
              THEN (SELECT gary.holds_scope('*')) AND role = (SELECT gary.role()) AND is_active
              ELSE gary.manages(role, 'users:write') END);

-- Whoever may change somebody finds the row to change; which routes show it is for the routes to say.
DROP POLICY caller_reads ON auth_users;
CREATE POLICY caller_reads ON auth_users FOR SELECT TO gary_caller
  USING (id = (SELECT gary.user_id()) OR gary.manages(role, 'users:read') OR gary.manages(role, 'users:write')
    OR (SELECT gary.role() = 'system'));
DROP POLICY caller_sees_managed ON auth_sessions;
CREATE POLICY caller_sees_managed ON auth_sessions FOR SELECT TO gary_caller
  USING (EXISTS (SELECT FROM auth_users u WHERE u.id = user_id
    AND (gary.manages(u.role, 'users:read') OR gary.manages(u.role, 'users:write'))));

-- Seeing keys is one right, deleting them another, and making them is for sessions: for oneself or somebody of
-- strictly lower rank, so that no owner holds a key of another one.
DROP POLICY caller_managed ON auth_api_keys;
CREATE POLICY caller_sees_managed ON auth_api_keys FOR SELECT TO gary_caller
  USING (EXISTS (SELECT FROM auth_users u WHERE u.id = user_id
    AND (gary.manages(u.role, 'users:read') OR gary.manages(u.role, 'users:write'))));
CREATE POLICY caller_deletes_managed ON auth_api_keys FOR DELETE TO gary_caller
  USING (EXISTS (SELECT FROM auth_users u WHERE u.id = user_id AND gary.manages(u.role, 'users:write')));
CREATE POLICY caller_makes_for_lower ON auth_api_keys FOR INSERT TO gary_caller
  WITH CHECK ((SELECT gary.holds_scope('*')) AND EXISTS (SELECT FROM auth_users u
    WHERE u.id = user_id AND gary.manages(u.role, 'users:write') AND gary.rank(u.role) < gary.rank((SELECT gary.role()))));

-- Whoever reads on behalf of a user reads what is that user's, and nothing the same key did for others.
DROP POLICY caller_reads ON audit_events;
CREATE POLICY caller_reads ON audit_events FOR SELECT TO gary_caller
  USING ((SELECT gary.reads_all_audit())
    OR ((SELECT gary.holds_scope('audit:read'))
      AND ((actor_type = 'user' AND actor_id = (SELECT gary.user_id()))
        OR ((SELECT gary.on_behalf_of()) IS NULL AND (SELECT gary.actor()) = actor_type || coalesce(':' || actor_id, ''))
        OR on_behalf_of = (SELECT gary.user_id()))));
