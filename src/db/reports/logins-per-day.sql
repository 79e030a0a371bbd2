-- Sign-ins a day (UTC): how many succeeded and failed, and by how many different users.
SELECT day,
       sum(CASE outcome WHEN 'succeeded' THEN 1 ELSE 0 END) AS succeeded,
       sum(CASE outcome WHEN 'failed' THEN 1 ELSE 0 END) AS failed,
       count(DISTINCT user_id) AS users
  FROM reports.logins
 WHERE received_at >= cast($1 AS timestamptz)
   AND received_at < cast($2 AS timestamptz)
 GROUP BY day
 ORDER BY day
