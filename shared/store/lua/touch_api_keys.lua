-- Note that these API keys are in use. ARGV names.
for _, name in ipairs(ARGV) do
  if redis.call('HEXISTS', K.api_keys, name) == 1 then redis.call('HSET', K.api_keys_used, name, NOW_MS) end
end
return #ARGV
