-- Who asks is confirmed by the first statement of a flight (src/db/claims.ts): where that finds nothing it raises, and
-- the server skips the statements behind it. Class GZ is nobody else's (PostgreSQL manual, appendix A).
CREATE FUNCTION gary.refuse_claim() RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = 'GZ401', MESSAGE = 'the caller is not who was taken for it any more';
END $$;
ALTER FUNCTION gary.refuse_claim() OWNER TO gary_owner;
REVOKE ALL ON FUNCTION gary.refuse_claim() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gary.refuse_claim() TO gary_app;
