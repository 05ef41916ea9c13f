-- Delete consumers of the request stream that are long gone. One script, since a consumer may wake up and read
-- between a look and a deletion, and deleting it drops what it was given. ARGV group, own name, idle_ms.
-- Returns their names.
local gone = {}
-- pcall: after a FLUSHALL there is no group, hence nobody to forget.
for _, flat in ipairs(redis.pcall('XINFO', 'CONSUMERS', K.requests, ARGV[1])) do
  local consumer = record(flat)
  if consumer.name ~= ARGV[2] and consumer.pending == 0 and consumer.idle > tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', K.requests, ARGV[1], consumer.name)
    gone[#gone + 1] = consumer.name
  end
end
return gone
